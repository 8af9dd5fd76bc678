"""The app: configuration, registry, base classes, modules, bulk publishing, and what is current."""

from __future__ import annotations

import importlib
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from umbel import Umbel, current, current_app, shared_task
from umbel.current import get_current_app
from umbel.exceptions import DuplicateTaskNameWarning, ImproperlyConfigured, NotRegistered, OperationalError
from umbel.interfaces import QUEUED, Middleware
from umbel.loading import find_app
from umbel.message import decode_call, decode_envelope
from umbel.task import Task


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Umbel]:
    url = f"memory://{request.node.name}"
    app = Umbel("shop", broker=url, backend=url)
    yield app
    app.close()


def sent(app: Umbel, queue: str = "celery") -> list[Any]:
    accept = ["json"]
    return [decode_call(decode_envelope(each.raw), accept) for each in app.broker.peek(queue)]


def test_a_url_given_to_the_constructor_is_a_setting(app: Umbel) -> None:
    assert app.conf.broker_url.startswith("memory://")
    assert Umbel(task_default_queue="orders", set_as_current=False).conf.task_default_queue == "orders"


def test_an_unknown_constructor_option_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="task_default_queue"):
        Umbel(task_default_queu="orders", set_as_current=False)


def test_tasks_are_declared_before_the_configuration_is_known() -> None:
    app = Umbel("late", set_as_current=False)

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    app.config_from_object({"task_serializer": "pickle", "task_acks_late": False})
    assert add.serializer == "pickle"
    assert add.acks_late is False
    app.conf.task_serializer = "json"
    assert add.serializer == "json"


def test_on_after_configure_is_sent_once_even_without_a_source() -> None:
    app = Umbel("once", set_as_current=False)
    seen: list[Any] = []

    def configured(sender: Any, source: Any, **_: Any) -> None:
        seen.append(sender)
        sender.add_periodic_task(10.0, "once.tick", name="tick")

    app.on_after_configure.connect(configured)
    app.finalize()
    assert app.conf.beat_schedule["tick"]["task"] == "once.tick"
    assert seen == [app]


def test_names_are_celerys(app: Umbel) -> None:
    def charge() -> None: ...

    charge.__module__ = "__main__"
    assert app.task(charge).name == "shop.charge"
    charge.__module__ = "proj.tasks"
    assert app.task(charge).name == "proj.tasks.charge"
    assert app.task(name="other")(charge).name == "other"


def test_the_registry_says_what_is_missing(app: Umbel) -> None:
    with pytest.raises(NotRegistered, match=r"nope.*imported"):
        app.tasks["nope"]


def test_two_functions_of_one_name_warn_and_the_first_stays(app: Umbel) -> None:
    first = app.task(name="same")(lambda: 1)
    with pytest.warns(DuplicateTaskNameWarning, match="same") as caught:
        second = app.task(name="same")(lambda: 2)
    assert second is first
    assert caught[0].filename == __file__


def test_the_same_function_may_be_declared_twice(app: Umbel) -> None:
    def twice() -> None: ...

    assert app.task(twice) is app.task(twice)


def test_an_app_that_must_not_finalize_itself_says_so() -> None:
    app = Umbel("manual", autofinalize=False, set_as_current=False)
    with pytest.raises(RuntimeError, match="not finalized"):
        _ = app.tasks
    app.finalize()
    assert app.tasks is app.registry


def test_tasks_of_one_app_are_shared_with_others_unless_told(app: Umbel) -> None:
    app.task(name="tests.ours", shared=False)(lambda: 1)
    app.task(name="tests.everybodys")(lambda: 1)
    other = Umbel("other", set_as_current=False)
    assert "tests.everybodys" in other.tasks
    assert other.tasks["tests.everybodys"].app is other
    assert "tests.ours" not in other.tasks


def test_a_shared_task_belongs_to_the_current_app(app: Umbel) -> None:
    @shared_task(name="tests.shared_add")
    def add(x: int, y: int) -> int:
        return x + y

    assert add.app is app
    other = Umbel("other", broker="memory://other", backend="memory://other")
    assert add.app is other
    assert add(2, 3) == 5
    assert isinstance(add, Task)
    other.close()
    app.set_current()
    assert add.app is app


def test_a_shared_task_reaches_apps_that_are_finalized_already(app: Umbel) -> None:
    app.finalize()
    shared_task(name="tests.late_shared")(lambda: 1)
    assert "tests.late_shared" in app.registry


def test_shared_task_twice_is_an_error() -> None:
    with pytest.raises(TypeError, match="twice"):
        shared_task(shared_task(name="tests.double")(lambda: 1))


def test_a_thread_that_never_chose_finds_the_app(app: Umbel) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(get_current_app()))
    thread.start()
    thread.join()
    assert found == [app]
    assert current_app.main == "shop"


def test_a_closed_app_is_no_longer_current(app: Umbel) -> None:
    with Umbel("brief", broker="memory://brief") as brief:
        assert get_current_app() is brief
    assert get_current_app() is not brief
    assert brief not in current.active_apps()


def test_task_cls_and_assigned_base_classes_are_used(app: Umbel) -> None:
    class Loud(Task[..., Any]):
        abstract = True

    custom = Umbel("custom", task_cls=Loud, set_as_current=False)
    assert isinstance(custom.task(name="tests.loud")(lambda: 1), Loud)

    base = app.Task

    class ContextTask(base):  # type: ignore[misc, valid-type]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return ["context", base.__call__(self, *args, **kwargs)]

    app.Task = ContextTask
    task: Any = app.task(name="tests.context")(lambda: 1)
    assert task() == ["context", 1]
    assert task.apply().get() == ["context", 1]


def test_send_many_sends_signatures_tasks_and_names_in_order(app: Umbel) -> None:
    @app.task(name="tests.many")
    def many(x: int) -> int:
        return x

    results = app.send_many([many.s(1), (many, (2,)), ("tests.many", (3,)), ("far.away", (4,), {"k": 5})])
    calls = sent(app)
    assert [call.id for call in calls] == [result.id for result in results]
    assert [list(call.args) for call in calls] == [[1], [2], [3], [4]]
    assert calls[3].kwargs == {"k": 5}


def test_send_many_publishes_in_batches(app: Umbel) -> None:
    sizes: list[int] = []

    class Count(Middleware):
        def publish(self, batch: Any, call_next: Any) -> Any:
            sizes.append(len(batch))
            return [QUEUED] * len(batch)

    app.middlewares.append(Count())
    assert len(app.send_many(("tests.x", (n,)) for n in range(1001))) == 1001
    assert sizes == [500, 500, 1]


def test_send_many_says_how_far_it_came(app: Umbel) -> None:
    class Once(Middleware):
        calls = 0

        def publish(self, batch: Any, call_next: Any) -> Any:
            self.calls += 1
            if self.calls > 1:
                raise OperationalError("gone")
            return [QUEUED] * len(batch)

    app.middlewares.append(Once())
    with pytest.raises(OperationalError) as caught:
        app.send_many(("tests.x", (n,)) for n in range(700))
    assert caught.value.__notes__ == ["500 tasks of this bulk were sent before"]


def test_middlewares_wrap_from_the_outside_in(app: Umbel) -> None:
    order: list[str] = []

    class Named(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        def publish(self, batch: Any, call_next: Any) -> Any:
            order.append(self.name)
            return call_next(batch)

    app.middlewares += [Named("outer"), Named("inner")]
    app.send_task("tests.x")
    assert order == ["outer", "inner"]


def test_an_app_pickles_to_its_settings(app: Umbel) -> None:
    copy = pickle.loads(pickle.dumps(app))
    assert copy.main == "shop"
    assert copy.conf.broker_url == app.conf.broker_url
    copy.close()


class Doubling(Task[..., Any]):
    """A task class that a copy of an app is to find by its name."""


@pytest.mark.parametrize("how", ["name", "module", "constructor", "environment", "dict"])
def test_an_app_pickles_with_its_source(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pickledconf.py").write_text("SHOP_BROKER_URL = 'memory://from-conf'\nSHOP_TASK_DEFAULT_PRIORITY = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pickledconf", raising=False)
    monkeypatch.setenv("SHOP_CONF", "pickledconf")
    source: Any = "pickledconf" if how == "constructor" else None
    # The last two have no namespace but that of the app.
    app = Umbel("shop", config_source=source, namespace="SHOP", task_cls=Doubling, set_as_current=False)
    if how == "name":
        app.config_from_object("pickledconf", namespace="SHOP")
    elif how == "module":
        app.config_from_object(importlib.import_module("pickledconf"), namespace="SHOP")
    elif how == "environment":
        app.config_from_envvar("SHOP_CONF")
    elif how == "dict":
        app.config_from_object({"SHOP_BROKER_URL": "memory://from-conf"})
    app.conf.task_default_queue = "mine"
    data = pickle.dumps(app)
    copy = pickle.loads(data)
    assert (copy.conf.broker_url, copy.conf.task_default_queue) == ("memory://from-conf", "mine")
    assert copy.conf.task_default_priority == (None if how == "dict" else 3)
    assert issubclass(copy.Task, Doubling)
    assert app.conf.broker_url == copy.conf.broker_url
    for each in (app, copy):
        each.close()


def test_a_source_that_may_be_missing_may_be_missing_in_a_copy_too() -> None:
    app = Umbel("shop", broker="memory://", set_as_current=False)
    app.config_from_object("no_such_configuration", silent=True)
    copy = pickle.loads(pickle.dumps(app))
    assert copy.conf.broker_url == "memory://"
    for each in (app, copy):
        each.close()


def test_a_task_pickles_to_its_name(app: Umbel) -> None:
    task = app.task(name="tests.pickled")(lambda: 1)
    assert pickle.loads(pickle.dumps(task)) is task


def test_times_are_in_the_apps_zone() -> None:
    app = Umbel(timezone="Asia/Shanghai", set_as_current=False)
    offset = app.now().utcoffset()
    assert offset is not None
    assert offset.total_seconds() == 8 * 3600
    assert Umbel(set_as_current=False).uses_utc_timezone()


class TestModules:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        before = set(sys.modules)
        self.root = tmp_path
        yield
        for name in set(sys.modules) - before:
            del sys.modules[name]

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    APP = "from umbel import Umbel\n{} = Umbel('{}', set_as_current=False)\n"

    @pytest.mark.parametrize(
        ("files", "name"),
        [
            ({"uone.py": APP.format("app", "found")}, "uone"),
            ({"uone.py": APP.format("celery", "found")}, "uone"),
            ({"uone.py": APP.format("queue", "found")}, "uone"),
            ({"uone.py": APP.format("queue", "found")}, "uone:queue"),
            ({"uone.py": APP.format("queue", "found")}, "uone.queue"),
            ({"upkg/__init__.py": "", "upkg/celery.py": APP.format("app", "found")}, "upkg"),
            ({"upkg/__init__.py": "", "upkg/celery.py": APP.format("app", "found")}, "upkg.celery"),
            ({"upkg/__init__.py": "from . import app", "upkg/app.py": APP.format("celery", "found")}, "upkg"),
            ({"uone.py": "from umbel import Umbel\ndef make(): return Umbel('found')\n"}, "uone:make"),
            ({"uone.py": "class Web: pass\napp = Web()\n" + APP.format("celery", "found")}, "uone"),
        ],
    )
    def test_find_app(self, files: dict[str, str], name: str) -> None:
        for path, text in files.items():
            self.write(path, text)
        assert find_app(name, Umbel).main == "found"

    def test_find_app_ignores_the_current_app_proxy(self) -> None:
        self.write("uone.py", "from umbel import current_app\n")
        with pytest.raises(ImproperlyConfigured, match="holds no app"):
            find_app("uone", Umbel)

    def test_find_app_says_what_is_missing(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="no module 'unothing'"):
            find_app("unothing", Umbel)
        self.write("uone.py", "x = 1\n")
        with pytest.raises(ImproperlyConfigured, match="no attribute 'y'"):
            find_app("uone:y", Umbel)
        with pytest.raises(ImproperlyConfigured, match="is a int, not an app"):
            find_app("uone:x", Umbel)

    def test_an_import_error_inside_the_app_is_raised_as_it_is(self) -> None:
        self.write("uone.py", "import umissing_dependency\n")
        with pytest.raises(ModuleNotFoundError, match="umissing_dependency"):
            find_app("uone", Umbel)

    def test_autodiscovery_is_lazy_and_skips_packages_without_tasks(self) -> None:
        self.write("ufoo/__init__.py", "")
        self.write("ufoo/tasks.py", "from umbel import shared_task\n@shared_task\ndef dig(): return 1\n")
        self.write("ubar/__init__.py", "")
        app = Umbel("disc", set_as_current=False)
        app.autodiscover_tasks(lambda: ["ufoo", "ubar"])
        assert "ufoo.tasks" not in sys.modules
        app.import_default_modules()
        assert "ufoo.tasks.dig" in app.tasks

    def test_an_error_in_a_discovered_module_is_raised(self) -> None:
        self.write("ufoo/__init__.py", "")
        self.write("ufoo/tasks.py", "import umissing_dependency\n")
        app = Umbel("disc", set_as_current=False)
        with pytest.raises(ModuleNotFoundError, match="umissing_dependency"):
            app.autodiscover_tasks(["ufoo"], force=True)

    def test_imports_and_include_are_imported(self) -> None:
        self.write("ufirst.py", "")
        self.write("usecond.py", "")
        app = Umbel("inc", include=["usecond"], imports=("ufirst",), set_as_current=False)
        assert [module.__name__ for module in app.import_default_modules()] == ["ufirst", "usecond"]


def test_without_a_url_the_database_is_beside_the_project_of_the_calling_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("UMBEL_HOME", "CELERY_BROKER_URL", "UMBEL_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    project = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
    app = Umbel("beside", set_as_current=False)
    assert app.urls.default
    assert app.broker_url == app.urls.backend == f"sqlite:///{project}/.umbel/beside.db"
