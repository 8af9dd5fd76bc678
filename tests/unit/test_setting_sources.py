"""Where settings come from: sources of every kind, the environment, and who wins."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from umbel.exceptions import ImproperlyConfigured
from umbel.settings import ENVIRONMENT, Settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables in ENVIRONMENT.values():
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Write configuration modules; each has a name of its own, as imports are remembered."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


class OldStyle:
    BROKER_URL = "redis://localhost/0"
    CELERY_RESULT_BACKEND = "redis://localhost/1"
    CELERY_TIMEZONE = "Asia/Shanghai"
    CELERYBEAT_SCHEDULE = {"ptask": {"task": "tasks.period_task", "schedule": timedelta(seconds=5)}}
    MY_OWN = 3

    def helper(self) -> None: ...


@pytest.mark.parametrize("source", [OldStyle, OldStyle(), {k: v for k, v in vars(OldStyle).items() if k.isupper()}])
def test_a_source_is_a_class_an_object_or_a_dict(source: Any) -> None:
    conf = Settings()
    conf.load_object(source)
    assert conf.broker_url == "redis://localhost/0"
    assert conf.result_backend == "redis://localhost/1"
    assert conf.timezone == "Asia/Shanghai"
    assert list(conf.beat_schedule) == ["ptask"]
    assert conf.MY_OWN == 3


def test_a_source_is_a_module(modules: Any) -> None:
    text = """
from datetime import timedelta, timezone
import os
import time as events
from json import loads as include
from pathlib import Path as task_path
redis_url = "redis://localhost/0"
broker_url = redis_url
result_backend = redis_url
def worker_helper(): pass
class nested:
    task_serializer = "yaml"
"""
    name = modules("conf_module", text)
    conf = Settings()
    conf.load_object(name)
    assert conf.broker_url == "redis://localhost/0"
    assert conf.timezone is None
    assert conf.events is None
    assert conf.include == ()
    assert conf.redis_url == "redis://localhost/0"
    for path in (f"{name}:nested", f"{name}.nested"):
        conf.load_object(path)
        assert conf.task_serializer == "yaml"
        assert conf.broker_url is None, "a new source replaces the former"


def test_a_source_lies_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf_in_cwd.py").write_text("task_serializer = 'yaml'")
    monkeypatch.chdir(tmp_path)
    conf = Settings()
    conf.load_object("conf_in_cwd")
    assert conf.task_serializer == "yaml"


def test_a_namespace_is_stripped() -> None:
    django = SimpleNamespace(
        SHOP_TASK_ALWAYS_EAGER=True, SHOP_BROKER_URL="redis://a", BROKER_URL="redis://b", TIME_ZONE="Europe/Berlin",
        SHOP_REDBEAT_REDIS_URL="redis://c", TASK_TIME_LIMIT="not ours", DATABASES={"default": {}},
    )  # fmt: skip
    conf = Settings()
    conf.load_object(django, namespace="SHOP")
    assert conf.task_always_eager is True
    assert conf.broker_url == "redis://a"
    assert conf.timezone == "Europe/Berlin"
    assert conf.redbeat_redis_url == "redis://c"
    assert conf.task_time_limit is None
    assert conf.DATABASES == {"default": {}}
    conf.load_object({"SHOP_TASK_ALWAYS_EAGR": True}, namespace="SHOP_")
    with pytest.raises(ImproperlyConfigured, match="did you mean 'task_always_eager'"):
        _ = conf.task_always_eager


def test_foreign_attributes_are_not_touched() -> None:
    class Careful:
        CELERY_TASK_SERIALIZER = "yaml"

        @property
        def EXPENSIVE(self) -> str:
            raise AssertionError("nobody asked")

    conf = Settings()
    conf.load_object(Careful(), namespace="CELERY")
    assert conf.task_serializer == "yaml"


def test_old_and_new_names_in_one_source_are_an_error() -> None:
    conf = Settings()
    conf.load_object({"task_serializer": "json", "result_expires": 3, "CELERY_TIMEZONE": "UTC"})
    with pytest.raises(ImproperlyConfigured, match=r"(?s)to the new format.*CELERY_TIMEZONE +-> timezone\n$"):
        _ = conf.timezone
    conf.load_object({"BROKER_URL": "redis://", "CELERY_TIMEZONE": "UTC", "task_serializer": "json"})
    with pytest.raises(
        ImproperlyConfigured, match=r"(?s)to the old format.*task_serializer +-> CELERY_TASK_SERIALIZER"
    ):
        _ = conf.timezone


def test_what_is_unambiguous_may_be_mixed() -> None:
    conf = Settings()
    conf.load_object({"result_expires": 3, "CELERY_TASK_RESULT_EXPIRES": 4, "S3_BUCKET": "b", "lease_ttl": 40})
    assert conf.result_expires == 3
    conf.load_object({"BROKER_URL": "redis://", "lease_ttl": 40})
    assert conf.lease_ttl == 40
    conf.update({"task_serializer": "json", "CELERY_TIMEZONE": "UTC"})
    assert conf.timezone == "UTC"


def test_early_and_late_configuration_are_the_same() -> None:
    source = {"task_serializer": "yaml", "result_serializer": "yaml", "timezone": "UTC"}

    def explicit(conf: Settings) -> None:
        conf.task_serializer = "json"
        conf.setdefault("result_serializer", "json")
        conf.setdefault("event_serializer", "yaml")
        conf.add_defaults({"timezone": "Asia/Tokyo", "task_serializer": "msgpack"})

    early, late, read_between = Settings(), Settings(), Settings()
    explicit(early)
    early.load_object(source)
    late.load_object(source)
    explicit(late)
    assert read_between.task_serializer == "json"
    read_between.load_object(source)
    assert read_between.task_serializer == "yaml"
    explicit(read_between)
    assert dict(early) == dict(late) == dict(read_between)
    assert early.task_serializer == "json"
    assert early.result_serializer == "yaml"
    assert early.event_serializer == "yaml"
    assert early.timezone == "Asia/Tokyo"


def test_setdefault_returns_what_holds() -> None:
    conf = Settings({"task_serializer": "yaml"})
    assert conf.setdefault("task_serializer", "json") == "yaml"
    assert conf.setdefault("event_serializer", "yaml") == "yaml"
    assert conf.setdefault("mine", 3) == 3
    assert conf.mine == 3


def test_a_change_can_be_taken_back() -> None:
    conf = Settings({"task_serializer": "yaml", "mine": 1})
    del conf["CELERY_TASK_SERIALIZER"], conf["mine"]
    assert conf.task_serializer == "json"
    assert conf.changes == {}
    with pytest.raises(KeyError):
        del conf["task_serializer"]
    assert conf.pop("mine", 4) == 4


def test_sources_are_read_at_the_first_need_and_once(modules: Any) -> None:
    loads: list[Settings] = []
    conf = Settings(on_load=loads.append)
    name = modules("conf_lazy", "task_serializer = 'yaml'")
    called: list[int] = []

    def defaults() -> dict[str, str]:
        called.append(1)
        return {"timezone": "UTC"}

    conf.load_object(name)
    conf.add_defaults(defaults)
    assert (loads, called) == ([], [])
    assert conf.task_serializer == "yaml"
    assert conf.timezone == "UTC"
    assert (loads, called) == ([conf], [1])
    conf.load_object(name, force=True)
    assert len(loads) == 2


def test_a_source_that_fails_says_so_each_time(modules: Any) -> None:
    conf = Settings()
    conf.add_defaults({"timezone": "UTC"})
    conf.load_object("conf_nowhere")
    for _ in range(2):
        with pytest.raises(ImproperlyConfigured, match="there is no module 'conf_nowhere'"):
            _ = conf.task_serializer
    modules("conf_nowhere", "task_serializer = 'yaml'")
    assert conf.task_serializer == "yaml"
    assert conf.timezone == "UTC"


def test_a_configuration_module_may_read_settings(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = Settings({"timezone": "UTC"})
    holder = modules("conf_holder", "conf = None")
    vars(importlib.import_module(holder))["conf"] = conf
    text = "from conf_holder import conf\nseen = conf.task_serializer, conf.timezone\ntask_serializer = 'yaml'"
    conf.load_object(modules("conf_reads", text))
    assert conf.task_serializer == "yaml"
    assert conf.seen == ("json", "UTC")


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("conf_absent", "there is no module 'conf_absent'; write it as in an import statement"),
        ("conf_absent.inner", "there is no module 'conf_absent'"),
        ("conf_absent:attr", "there is no module 'conf_absent'"),
        ("conf_absent.py", "write the module's name, not its file's: 'conf_absent'"),
        ("conf_there.py", "write the module's name, not its file's: 'conf_there'"),
        ("conf_there:nothing", "'conf_there' has no attribute 'nothing'"),
        ("conf_there.nothing", "there is no module 'conf_there.nothing'"),
    ],
)
def test_a_source_that_is_not_there_is_a_clear_error(path: str, advice: str, modules: Any) -> None:
    modules("conf_there", "x = 1")
    conf = Settings()
    with pytest.raises(ImproperlyConfigured) as caught:
        conf.load_object(path, force=True)
    assert f"cannot find configuration {path!r}: " in str(caught.value)
    assert advice in str(caught.value)
    conf.load_object(path, silent=True)
    assert conf.task_serializer == "json"


def test_an_error_inside_a_source_is_raised_as_it_is(modules: Any) -> None:
    conf = Settings()
    conf.load_object(modules("conf_broken", "import nothing_that_exists"))
    with pytest.raises(ModuleNotFoundError, match="nothing_that_exists"):
        _ = conf.task_serializer


def test_an_environment_variable_names_the_source(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = Settings()
    with pytest.raises(ImproperlyConfigured, match="'SHOP_CONFIG' is not set"):
        conf.load_envvar("SHOP_CONFIG")
    assert conf.load_envvar("SHOP_CONFIG", silent=True) is False
    monkeypatch.setenv("SHOP_CONFIG", modules("conf_by_env", "task_serializer = 'yaml'"))
    assert conf.load_envvar("SHOP_CONFIG") is True
    assert conf.task_serializer == "yaml"


@pytest.mark.parametrize("name", sorted(ENVIRONMENT))
def test_the_environment_wins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = Settings({name: "redis://program"})
    assert conf[name] == "redis://program"
    monkeypatch.setenv(f"CELERY_{name.upper()}", "redis://celery")
    assert conf[name] == getattr(conf, name) == "redis://celery"
    monkeypatch.setenv(f"UMBEL_{name.upper()}", "redis://umbel")
    assert getattr(conf, name) == "redis://umbel"
    assert Settings().without_defaults()[name] == "redis://umbel"


def test_some_values_follow_from_others() -> None:
    conf = Settings({"broker_url": "redis://a", "broker_write_url": "redis://w", "task_default_queue": "q"})
    assert (conf.broker_read_url, conf.broker_write_url) == ("redis://a", "redis://w")
    assert (conf.task_default_exchange, conf.task_default_routing_key) == ("q", "q")
    conf.task_default_queue = "r"
    assert conf.task_default_exchange == "r"


def test_a_broker_may_be_given_in_parts() -> None:
    conf = Settings({"BROKER_HOST": "h", "BROKER_PORT": "6379", "BROKER_VHOST": "0", "BROKER_TRANSPORT": "redis"})
    assert conf.broker_url == "redis://h:6379/0"
    conf.update(BROKER_USER="me", BROKER_PASSWORD="a/b@c")
    assert conf.broker_read_url == "redis://me:a%2Fb%40c@h:6379/0"
    assert Settings({"broker_host": "redis://x"}).broker_url == "redis://x"


def test_a_redis_backend_may_be_given_in_parts() -> None:
    conf = Settings({"result_backend": "redis", "redis_host": "h", "redis_password": "p", "redis_db": 2})
    assert conf.result_backend == "redis://:p@h/2"
    assert Settings({"result_backend": "redis"}).result_backend == "redis"


def test_the_version_tells_of_changes() -> None:
    conf = Settings()
    before = conf.version
    _ = conf.task_serializer
    assert conf.version == before
    conf.task_serializer = "yaml"
    assert conf.version > before
    before = conf.version
    conf.load_object({"timezone": "UTC"})
    assert conf.version > before


def test_an_error_names_the_spelling_and_the_source(modules: Any) -> None:
    conf = Settings()
    conf.load_object(modules("conf_ill_typed", "CELERYD_CONCURRENCY = 'four'"))
    with pytest.raises(ImproperlyConfigured) as caught:
        _ = conf.worker_pool
    assert str(caught.value) == (
        "setting 'worker_concurrency' (written 'CELERYD_CONCURRENCY') in configuration 'conf_ill_typed' must be "
        "int | auto, not 'four' (str); give a whole number, such as 4, or \"auto\""
    )
