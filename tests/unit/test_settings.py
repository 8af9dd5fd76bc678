"""Settings: names, types, sources, who wins, and what is shown."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest

import umbel
from umbel.exceptions import CeleryWarning, ImproperlyConfigured
from umbel.setting_names import canonical, mistake
from umbel.setting_rows import CHANGED, OLD_NAMES, ROWS
from umbel.setting_values import READERS
from umbel.settings import ENVIRONMENT, Settings, check

OWN = {
    "lease_ttl", "lease_heartbeat", "lease_sweep", "max_deliveries", "redelivery_backoff", "publish_timeout",
    "publish_confirm", "publish_dedupe", "settle_window", "stuck_after", "durability", "events", "task_on_lost",
    "task_unknown_backoff", "task_dead_letter_exhausted", "task_dead_letter_expired", "worker_processes",
    "worker_shutdown_timeout", "worker_max_age_per_child", "security_accept_unsigned", "security_max_age",
    "max_message_size", "accept_unsafe", "task_allow_from_message", "result_store_traceback", "worker_log_json",
    "history_file", "history_max_tasks", "history_max_age",
}  # fmt: skip

#: Read, and nothing comes of it: Celery's class has it as an attribute.
READ_WITHOUT_EFFECT = {"event_queue_prefix"}

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables in ENVIRONMENT.values():
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)


# -- the table -------------------------------------------------------------------------------------------------------


def test_the_table_is_celerys_and_our_own() -> None:
    defaults = pytest.importorskip("celery.app.defaults")
    assert set(ROWS) == set(defaults.DEFAULTS) | OWN
    assert {row.old_name: row.name for row in ROWS.values() if row.old_name} == defaults._TO_NEW_KEY
    changed = {name for name, value in defaults.DEFAULTS.items() if ROWS[name].default != value}
    assert changed == set(CHANGED)


def test_every_row_is_sound() -> None:
    for row in ROWS.values():
        assert row.type.removesuffix(" | none") in READERS, row
        assert row.doc.endswith("."), row
        conf = Settings({row.name: row.default})
        assert conf[row.name] == Settings()[row.name], row


def test_the_defaults_that_lose_work_are_changed() -> None:
    conf = Settings()
    assert conf.task_acks_late is True
    assert conf.task_reject_on_worker_lost is True
    assert conf.broker_url is None
    assert conf.result_backend is None


def test_no_name_means_two_settings() -> None:
    for name in ROWS:
        assert canonical(name) == name
        for spelling in (f"CELERY_{name.upper()}", f"UMBEL_{name.upper()}", f"SHOP_{name.upper()}"):
            assert canonical(spelling, "SHOP") == name
    for old, new in OLD_NAMES.items():
        assert canonical(old) == canonical(old, "CELERY") == new


def _attributes_of(path: Path) -> Iterator[str]:
    """Yield the settings that a module surely reads: ``conf.name``, ``conf["name"]`` and ``conf.seconds("name")``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Attribute(value=owner, attr=name, ctx=ast.Load()):
                pass
            case ast.Subscript(value=owner, slice=ast.Constant(value=name), ctx=ast.Load()):
                pass
            case ast.Call(func=ast.Attribute(value=owner, attr="seconds" | "get"), args=[ast.Constant(value=name), *_]):
                pass
            case _:
                continue
        if name in ROWS and ast.unparse(owner).rpartition(".")[2] in ("conf", "settings"):
            yield str(name)


def _read_by(path: Path) -> Iterator[str]:
    """Yield what a module may read as a setting: ``conf.name``, and strings that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ROWS and "conf" in ast.unparse(node.value):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


def test_a_setting_that_claims_an_effect_is_read_by_somebody() -> None:
    modules = [path for path in Path(umbel.__file__).parent.rglob("*.py") if path.name != "setting_rows.py"]
    read = {name for path in modules for name in _read_by(path)}
    assert [name for name, row in ROWS.items() if row.effect and name not in read] == []
    assert "s3_bucket" not in read


def test_a_setting_that_is_read_claims_an_effect() -> None:
    modules = [path for path in Path(umbel.__file__).parent.rglob("*.py") if path.name != "setting_rows.py"]
    read = {name for path in modules for name in _attributes_of(path)}
    assert len(read) > 100
    assert {name for name in read if not ROWS[name].effect} == READ_WITHOUT_EFFECT


def test_the_page_of_settings_is_current() -> None:
    spec = importlib.util.spec_from_file_location("make_settings", DOCS / "make_settings.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == maker.render(), "run: make docs"


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("task_serializer", "task_serializer"),
        ("CELERY_TASK_SERIALIZER", "task_serializer"),
        ("TASK_SERIALIZER", "task_serializer"),
        ("BROKER_URL", "broker_url"),
        ("CELERY_BROKER_URL", "broker_url"),
        ("RESULT_BACKEND", "result_backend"),
        ("CELERYD_CONCURRENCY", "worker_concurrency"),
        ("CELERY_WORKER_CONCURRENCY", "worker_concurrency"),
        ("CELERYBEAT_SCHEDULE", "beat_schedule"),
        ("CELERY_TASK_RESULT_EXPIRES", "result_expires"),
        ("TASK_RESULT_EXPIRES", "result_expires"),
        ("CELERY_ENABLE_UTC", "enable_utc"),
        ("celery_broker_url", "broker_url"),
        ("UMBEL_LEASE_TTL", "lease_ttl"),
        ("SECRET_KEY", None),
        ("REDIS_HOST", None),
        ("REDIS_PASSWORD", None),
        ("DATABASE_URL", None),
        ("TIMEZONE", None),
        ("CELERY", None),
        ("CELERY_", None),
        ("Task_Serializer", None),
        ("", None),
    ],
)
def test_a_name_means_a_setting(given: str, name: str | None) -> None:
    assert canonical(given) == name


def test_names_are_read_and_written_in_any_spelling() -> None:
    conf = Settings({"CELERY_TASK_SERIALIZER": "yaml"})
    assert conf.task_serializer == conf["CELERY_TASK_SERIALIZER"] == conf.TASK_SERIALIZER == "yaml"
    conf["task_serializer"] = "json"
    assert conf.CELERY_TASK_SERIALIZER == "json"
    conf.BROKER_URL = "redis://x"
    assert conf.get("broker_url") == "redis://x"
    assert "BROKER_URL" in conf
    assert conf.changes == {"task_serializer": "json", "broker_url": "redis://x"}


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("task_serialiser", "task_serializer"),
        ("worker_concurency", "worker_concurrency"),
        ("imprts", "imports"),
        ("accept_contents", "accept_content"),
        ("broker_uri", "broker_url"),
        ("CELERY_RESULT_BACKENDS", "CELERY_RESULT_BACKEND"),
        ("CELERYD_CONCURENCY", "CELERYD_CONCURRENCY"),
        ("BROKER_ULR", "BROKER_URL"),
    ],
)
def test_a_misspelt_name_is_an_error_with_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"unknown setting '{given}' in conf.update\(\); .*'{nearest}'"):
        Settings().update({given: "x"})
    with pytest.raises(ImproperlyConfigured, match=given):
        Settings({given: "x"})
    with pytest.raises(ImproperlyConfigured, match=given):
        Settings()[given] = "x"
    conf = Settings()
    conf.load_object({given: "x"})
    with pytest.raises(ImproperlyConfigured, match=given):
        _ = conf.task_serializer


def test_a_name_with_a_prefix_of_ours_is_an_error() -> None:
    with pytest.raises(ImproperlyConfigured, match="must not start with 'worker_'"):
        Settings().update(worker_colour_of_the_hat="red")


@pytest.mark.parametrize(
    "name",
    ["redbeat_redis_url", "ONCE", "my_key", "beat_dburi", "CELERY", "TASKS", "WORKER_THREADS", "redis_url", "os"],
)
def test_other_names_are_kept(name: str) -> None:
    assert mistake(name) is None
    conf = Settings()
    conf.update({name: 7})
    assert conf[name] == getattr(conf, name) == conf.get(name) == 7
    assert name in conf
    assert name in list(conf)


def test_under_the_old_import_name_a_mistake_is_a_warning() -> None:
    with pytest.warns(CeleryWarning, match="task_serialiser"):
        conf = Settings({"task_serialiser": "x"}, strict=False)
    assert conf["task_serialiser"] == "x"


def test_a_whole_flask_configuration_may_be_given() -> None:
    flask = pytest.importorskip("flask")
    config = flask.Flask("shop").config
    config.update(
        SQLALCHEMY_DATABASE_URI="sqlite://", REDIS_PORT="no port", TIMEZONE=object(), S3_BUCKET={"not": "ours"},
        CELERY_BROKER_URL="redis://localhost:6379/0", CELERY_RESULT_BACKEND="redis://localhost:6379/1",
    )  # fmt: skip
    conf = Settings()
    conf.update(config)
    assert conf.broker_url == "redis://localhost:6379/0"
    assert conf.result_backend == "redis://localhost:6379/1"
    assert conf.SQLALCHEMY_DATABASE_URI == "sqlite://"
    assert conf["REDIS_PORT"] == "no port"
    assert conf.redis_port is None
    assert conf.timezone is None
    assert "SQLALCHEMY_DATABASE_URI" not in conf.table()


def test_an_unknown_name_has_no_value() -> None:
    conf = Settings()
    with pytest.raises(KeyError):
        conf["nothing"]
    with pytest.raises(AttributeError, match="did you mean 'task_serializer'"):
        _ = conf.task_serialiser
    assert conf.get("nothing", 3) == 3
    assert not hasattr(conf, "__wrapped__")


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("worker_prefetch_multiplier", "2", 2),
        ("worker_prefetch_multiplier", 2.0, 2),
        ("worker_max_tasks_per_child", False, 0),
        ("worker_concurrency", "8", 8),
        ("worker_concurrency", "AUTO", "auto"),
        ("task_always_eager", "true", True),
        ("task_always_eager", "off", False),
        ("task_always_eager", 1, True),
        ("task_time_limit", "2.5", 2.5),
        ("task_time_limit", timedelta(minutes=1), 60.0),
        ("result_expires", timedelta(hours=1), timedelta(hours=1)),
        ("result_expires", "3600", 3600),
        ("result_expires", None, None),
        ("broker_pool_limit", None, None),
        ("broker_pool_limit", "none", None),
        ("task_default_queue", None, "celery"),
        ("task_acks_late", None, True),
        ("accept_content", "json, yaml", ["json", "yaml"]),
        ("accept_content", '["json"]', ["json"]),
        ("accept_content", {"json"}, {"json"}),
        ("imports", "proj.tasks", ("proj.tasks",)),
        ("broker_transport_options", '{"a": 1}', {"a": 1}),
        ("broker_use_ssl", {"cert": 1}, {"cert": 1}),
        ("broker_use_ssl", "yes", True),
        ("redelivery_backoff", "1,2.5", (1, 2.5)),
        ("redelivery_backoff", 3, (3,)),
        ("task_on_lost", "FAIL", "fail"),
        ("timezone", UTC, UTC),
        ("broker_url", ["redis://a", "redis://b"], ["redis://a", "redis://b"]),
        ("beat_schedule_filename", Path("x/y"), str(Path("x/y"))),
        ("worker_pool", dict, dict),
    ],
)
def test_a_value_is_read(name: str, given: Any, read: Any) -> None:
    conf = Settings({name: given})
    assert conf[name] == read
    assert type(conf[name]) is type(read)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("worker_prefetch_multiplier", "four"),
        ("worker_prefetch_multiplier", 2.5),
        ("worker_prefetch_multiplier", True),
        ("worker_prefetch_multiplier", float("inf")),
        ("worker_concurrency", "many"),
        ("worker_concurrency", []),
        ("task_always_eager", "perhaps"),
        ("task_always_eager", 2.5),
        ("task_always_eager", []),
        ("task_time_limit", "nan"),
        ("task_time_limit", object()),
        ("lease_ttl", 0),
        ("lease_ttl", -1),
        ("accept_content", 3),
        ("accept_content", b"json"),
        ("imports", {"a": 1}),
        ("broker_transport_options", "not json"),
        ("broker_transport_options", []),
        ("redelivery_backoff", ()),
        ("redelivery_backoff", (-1,)),
        ("task_serializer", dict),
        ("timezone", 3.5j),
        ("task_on_lost", "shrug"),
        ("security_key_password", 3),
    ],
)
def test_a_value_of_another_type_says_what_to_do(name: str, given: Any) -> None:
    conf = Settings()
    with pytest.raises(ImproperlyConfigured, match=rf"setting '{name}' in app.conf must be .*; give ") as caught:
        setattr(conf, name, given)
    assert str(given) in str(caught.value) or name == "security_key_password"
    assert name not in conf.changes


def test_an_error_does_not_show_a_secret() -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        Settings({"redis_password": ["s3cret"]})
    assert "s3cret" not in str(caught.value)


def test_an_update_is_done_whole_or_not_at_all() -> None:
    conf = Settings()
    with pytest.raises(ImproperlyConfigured):
        conf.update(task_serializer="yaml", worker_prefetch_multiplier="four")
    assert conf.changes == {}


def test_update_takes_what_celerys_does() -> None:
    conf = Settings()
    conf.update(None, task_serializer="yaml")
    conf.update({"enable_utc": False}, timezone="Asia/Shanghai")
    conf.update([("include", ["a"])])
    conf.update()
    assert (conf.task_serializer, conf.enable_utc, conf.timezone, conf.include) == (
        "yaml",
        False,
        "Asia/Shanghai",
        ["a"],
    )


def test_a_mutable_default_can_be_changed_in_place() -> None:
    one, other = Settings(), Settings()
    one.beat_schedule["nightly"] = {"task": "t"}
    assert one["beat_schedule"] == {"nightly": {"task": "t"}}
    assert other.beat_schedule == {}
    assert one.without_defaults() == {"beat_schedule": {"nightly": {"task": "t"}}}
    one.task_serializer = "yaml"
    assert "nightly" in one.beat_schedule


# -- what is shown ---------------------------------------------------------------------------------------------------


def test_secrets_are_not_shown() -> None:
    conf = Settings({
        "broker_url": "redis://u:canary@h/0",
        "broker_read_url": ["redis://:canary@a", "redis://:canary@b?token=canary"],
        "result_backend": "sentinel://:canary@a;sentinel://:canary@b",
        "redis_password": "canary",
        "s3_secret_access_key": "canary",
        "broker_transport_options": {"sentinel_kwargs": {"password": "canary"}, "master_name": "m"},
        "database_url": "postgresql://u:canary@h",
        "beat_schedule": {"x": {"kwargs": {"api_token": "canary"}}},
        "task_serializer": "yaml",
        "MY_OWN": "canary",
    })  # fmt: skip
    for shown in (conf.humanize(), conf.humanize(with_defaults=True), repr(conf.table()), repr(conf)):
        assert "canary" not in shown
    assert conf.table()["broker_url"] == "redis://u:********@h/0"
    assert conf.table()["broker_transport_options"]["master_name"] == "m"
    assert conf.table(censored=False)["redis_password"] == "canary"
    assert "task_serializer: 'yaml'" in conf.humanize().splitlines()
    assert "enable_utc: True" in conf.humanize(with_defaults=True).splitlines()


def test_what_does_nothing_is_told() -> None:
    conf = Settings({"s3_bucket": "b", "task_serializer": "yaml", "beat_sync_every": 0, "MINE": 1})
    assert conf.idle() == ["s3_bucket"]


def test_a_duration_is_a_number_of_seconds() -> None:
    conf = Settings()
    assert conf.result_expires == timedelta(days=1)
    assert conf.seconds("result_expires") == 86400.0
    conf.result_expires = 60
    assert conf.seconds("result_expires") == 60
    assert conf.seconds("task_time_limit") is None


def test_transport_options_that_nobody_reads_are_told() -> None:
    conf = Settings({
        "broker_url": "redis://h;redis://i",
        "broker_transport_options": {"visibility_timeout": 3600, "global_keyprefix": "shop:", "sep": ":"},
        "result_backend": "rediss://h",
        "result_backend_transport_options": {"retry_policy": {}, "socket_timeout": 2},
    })  # fmt: skip
    assert conf.idle() == [
        "broker_transport_options.visibility_timeout",
        "result_backend_transport_options.retry_policy",
    ]
    conf.broker_url = None
    assert "broker_transport_options.sep" in conf.idle()
    conf.broker_url = "carrier-pigeon://coop"  # a third party's: nobody here knows what it reads
    assert conf.idle() == ["result_backend_transport_options.retry_policy"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lease_ttl": 20}, r"lease_ttl \(20\).*set lease_ttl to 30"),
        ({"broker_transport_options": {"socket_timeout": 10}}, r"socket_timeout \(10\).*lease_heartbeat \(10\)"),
        ({"broker_url": "redis://h/1?socket_timeout=1;redis://i/1?socket_timeout=60"}, r"socket_timeout \(60\)"),
        ({"lease_heartbeat": 3, "broker_transport_options": {"socket_timeout": "4"}}, r"lease_heartbeat \(3\)"),
        ({"task_soft_time_limit": 9, "task_time_limit": 8.5}, r"task_soft_time_limit \(9\).*\(8.5\)"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=said) as caught:
        check(Settings(changes))
    assert "\n" not in str(caught.value)


def test_what_does_not_contradict_is_accepted() -> None:
    check(Settings())
    check(Settings({"task_soft_time_limit": 8, "task_time_limit": 8}))
    check(Settings({"task_soft_time_limit": 8, "broker_transport_options": {"socket_timeout": 9.5}}))
    check(Settings({"broker_transport_options": {"socket_timeout": None}}))
