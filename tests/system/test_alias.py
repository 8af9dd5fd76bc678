"""``import celery`` finds Umbel: beside a real celery and without one, by each way in, in programs of every shape."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support import DEADLINE, environment, worker
from umbel.celery import switch_path


class Python:
    """Runs programs: where celery, kombu and billiard are installed (``beside``), or where they are not (``bare``)."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.bare = kind == "bare"
        self.folder = folder
        self._path: list[str] = []
        self._options: list[str] = []
        if self.bare:
            # Without site-packages, and with what Umbel needs and no more.
            site = folder / "site"
            site.mkdir()
            for name in ("umbel", "click", "msgspec"):
                spec = importlib.util.find_spec(name)
                assert spec is not None and spec.origin is not None
                (site / name).symlink_to(Path(spec.origin).parent)
            self._path, self._options = [str(site)], ["-S"]

    def command(self, *words: str) -> list[str]:
        return [sys.executable, *self._options, *words]

    def env(self, *, switch: bool = False) -> dict[str, str]:
        path = [*([switch_path()] if switch else []), *self._path]
        return environment(UMBEL_HOME=str(self.folder / "home"), PYTHONPATH=os.pathsep.join(path))

    def run(self, *words: str, switch: bool = False, status: int = 0) -> str:
        done = subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.env(switch=switch),
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + (done.stderr if status else "")

    def code(self, code: str, *, status: int = 0) -> str:
        """Run code under the alias."""
        return self.run("-m", "umbel.celery", "-c", textwrap.dedent(code), status=status)


@pytest.fixture(params=["beside", "bare"])
def python(request: pytest.FixtureRequest, tmp_path: Path) -> Python:
    return Python(request.param, tmp_path)


@pytest.fixture
def beside(tmp_path: Path) -> Python:
    return Python("beside", tmp_path)


PROOF = """
import celery, umbel
from celery import Celery
import sys
print(Celery is umbel.Umbel, sys.argv[1:], __name__)
"""


# -- the ways in -----------------------------------------------------------------------------------------------------


def test_a_script(python: Python) -> None:
    (python.folder / "prog").mkdir()
    (python.folder / "prog" / "helper.py").write_text("where = 'beside the script'")
    (python.folder / "prog" / "main.py").write_text(PROOF + "import helper; print(helper.where)")
    out = python.run("-m", "umbel.celery", "prog/main.py", "a", "--b")
    assert out.splitlines() == ["True ['a', '--b'] __main__", "beside the script"]


def test_a_module(python: Python) -> None:
    (python.folder / "prog.py").write_text(PROOF)
    assert python.run("-m", "umbel.celery", "-m", "prog", "a") == "True ['a'] __main__\n"


def test_a_line_of_code(python: Python) -> None:
    assert python.code(PROOF) == "True [] __main__\n"


def test_the_folder_in_pythonpath(python: Python) -> None:
    folder = python.run("-m", "umbel.celery", "--path").strip()
    assert folder == str(Path(switch_path())) or os.path.samefile(folder, switch_path())
    (python.folder / "prog.py").write_text(PROOF)
    assert python.run("prog.py", "a", switch=True) == "True ['a'] __main__\n"


@pytest.mark.parametrize("first", ["celery.exceptions", "kombu", "kombu.exceptions", "billiard.exceptions"])
def test_the_folder_works_whatever_is_imported_first(python: Python, first: str) -> None:
    code = f"import {first}, celery, kombu, sys; print(hasattr(kombu, '__file__'), celery.Celery.__module__)"
    assert python.run("-c", code, switch=True) == f"{not python.bare} umbel.app\n"


def test_install_in_a_program(python: Python) -> None:
    code = "import umbel.celery as a; a.install(); a.install(); import celery; print(a.installed(), celery.Celery)"
    assert python.run("-c", code) == "True <class 'umbel.app.Umbel'>\n"


def test_it_is_not_there_unless_asked_for(beside: Python) -> None:
    code = "import umbel.app, umbel.celery; import celery; print(celery.Celery.__module__, umbel.celery.installed())"
    assert beside.run("-c", code) == "celery.app.base False\n"


def test_after_the_real_one_is_imported_it_is_too_late(beside: Python) -> None:
    said = beside.run("-c", "import celery, umbel.celery; umbel.celery.install()", status=1)
    assert "ImproperlyConfigured: celery is imported already, from" in said
    assert 'PYTHONPATH="$(python -m umbel.celery --path)"' in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "usage: python -m umbel.celery SCRIPT"),
        (["-m"], "usage:"),
        (["--paht"], "usage:"),
        (["nowhere.py"], "there is no file 'nowhere.py'; a module is given with -m"),
    ],
)
def test_a_wrong_command_line(beside: Python, words: list[str], says: str) -> None:
    assert says in beside.run("-m", "umbel.celery", *words, status=2)


def test_what_the_program_raises_ends_it(beside: Python) -> None:
    assert "SystemExit" not in beside.code("import sys; sys.exit(3)", status=3)
    assert "ValueError: no" in beside.code("raise ValueError('no')", status=1)


# -- what is found ---------------------------------------------------------------------------------------------------


def test_modules_and_classes_are_the_same_objects(python: Python) -> None:
    python.code(
        """
        import celery, celery.app.task, celery.canvas, celery.exceptions, celery.result, celery.signals, celery.states
        import celery.utils.log
        import umbel, umbel.exceptions, umbel.result, umbel.signals, umbel.states, umbel.utils.log
        assert celery.Celery is umbel.Umbel and celery.Task is umbel.Task is celery.app.task.Task
        assert celery.signals is umbel.signals and celery.states is umbel.states and celery.result is umbel.result
        assert umbel.signals.__name__ == umbel.signals.__spec__.name == "umbel.signals"
        for name in celery.exceptions.__all__:
            ours = getattr(umbel.exceptions, name, None)
            assert ours is None or ours is getattr(celery.exceptions, name), name
        assert celery.canvas.chain is celery.chain is umbel.chain and celery.canvas.Signature is umbel.Signature
        assert celery.utils.log.get_task_logger is umbel.utils.log.get_task_logger
        import sys
        real = [name for name, each in sys.modules.items()
                if name.startswith("celery") and "site-packages/celery" in str(getattr(each, "__file__", ""))]
        assert real == [], real
        """
    )


def test_versions(python: Python) -> None:
    out = python.code(
        """
        import celery, importlib.metadata as metadata
        print(celery.__version__, tuple(celery.VERSION), metadata.version("celery"))
        """
    )
    assert out == "5.7.0 (5, 7, 0, '', '') 5.7.0\n"


def test_star_import_and_lazy_submodules(python: Python) -> None:
    python.code(
        """
        from celery import *
        from celery.exceptions import *
        from celery.utils.functional import *
        assert Celery and chain and Reject and maybe_list
        import celery
        assert celery.utils.time.rate("60/m") == 1.0 and "signature" in dir(celery)
        """
    )


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("from celery import nonsense", "has no attribute 'nonsense'"),
        ("from celery.app.base import Celeri", "did you mean 'Celery'?"),
        ("import celery.nonsense", "has no attribute 'nonsense'"),
        ("import celery.utils.functionall", "did you mean 'functional'?"),
        ("import celery.backends.mongodb", "use redis://, sqlite:/// or memory://"),
        ("from celery.backends.database import Task", "use redis://, sqlite:/// or memory://"),
        ("import celery.concurrency.gevent", "use -P asyncio with coroutine tasks, or -P threads"),
        ("from celery.platforms import DaemonContext", "umbel worker --detach"),
        ("from celery.utils.sysinfo import cpu_budget", "available_cpu_count"),
    ],
)
def test_what_is_not_there_says_what_to_do(beside: Python, statement: str, says: str) -> None:
    out = beside.code(
        f"""
        try:
            {statement}
        except ImportError as error:
            print(error)
        """
    )
    assert says in out
    if statement.startswith("from"):
        _, module, _, name = statement.split()
        beside.code(
            f"""
            import importlib
            try:
                assert not hasattr(importlib.import_module({module!r}), {name!r})
            except ImportError:
                pass
            """
        )


def test_a_schedule_can_be_written_down(python: Python) -> None:
    python.code(
        """
        from celery import Celery
        from celery.schedules import crontab, schedule
        from celery.beat import Scheduler
        app = Celery("t", broker="memory://", beat_schedule={"x": {"task": "t.x", "schedule": crontab(minute="*/5")}})
        assert app.conf.beat_schedule["x"]["schedule"] == crontab(minute="*/5") != crontab()
        from celery.apps.beat import Beat
        from celery.beat import DEFAULT_MAX_INTERVAL, BeatLazyFunc, PersistentScheduler, ScheduleEntry, SchedulingError
        (entry,) = Scheduler(app).schedule.values()
        assert isinstance(entry, ScheduleEntry) and entry.is_due().next <= 300 and entry.task == "t.x"
        assert issubclass(PersistentScheduler, Scheduler) and DEFAULT_MAX_INTERVAL == 300
        assert app.Beat(quiet=True).app is app and issubclass(app.Beat, Beat)
        """
    )


def test_a_name_that_somebody_sets_is_kept_on_the_page(beside: Python) -> None:
    beside.code(
        """
        from unittest import mock
        import celery.app.base, umbel.app
        with mock.patch("celery.app.base.Celery", 1):
            assert celery.app.base.Celery == 1
        assert celery.app.base.Celery is umbel.app.Umbel
        with mock.patch("umbel.app.Celery", 2):
            assert celery.app.base.Celery == 2
        """
    )


# -- settings --------------------------------------------------------------------------------------------------------


def test_unknown_settings_are_warnings(python: Python) -> None:
    python.code(
        """
        import warnings
        from celery import Celery
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            app = Celery("t", broker="memory://", task_seralizer="json", wholly_unknown=1)
            app.conf.update(worker_colour="blue", task_serializer="json")
            app.config_from_object({"result_expirez": 3})
            app.conf.result_expires
        said = " ".join(str(each.message) for each in seen)
        for name in ("task_seralizer", "wholly_unknown", "worker_colour", "result_expirez"):
            assert name in said, (name, said)
        assert app.conf.worker_colour == "blue" and app.conf.task_serializer == "json"
        """
    )


def test_without_the_alias_they_are_errors(beside: Python) -> None:
    said = beside.run("-c", "import umbel; umbel.Umbel('t', task_seralizer='json')", status=1)
    assert "did you mean 'task_serializer'?" in said


# -- kombu and billiard ----------------------------------------------------------------------------------------------


def test_exceptions_are_caught_under_every_name(python: Python) -> None:
    python.code(
        """
        import celery.exceptions, umbel.exceptions as ours
        import kombu.exceptions, billiard.exceptions
        for name in ("OperationalError", "EncodeError", "DecodeError", "ContentDisallowed", "SerializationError"):
            assert getattr(kombu.exceptions, name) is getattr(ours, name), name
        for name in ("SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError", "Terminated"):
            assert getattr(billiard.exceptions, name) is getattr(celery.exceptions, name) is getattr(ours, name), name
        from celery import Celery
        app = Celery("t", broker="memory://")
        @app.task
        def add(x): return x
        try:
            add.delay(object())
        except kombu.exceptions.EncodeError:
            pass
        else:
            raise AssertionError
        from billiard.einfo import ExceptionInfo
        import umbel.tracing
        assert ExceptionInfo is umbel.tracing.ExceptionInfo
        try:
            1 / 0
        except ZeroDivisionError as error:
            for info in (ExceptionInfo(), ExceptionInfo(error), ExceptionInfo((type(error), error, None))):
                assert info.exception is error and "ZeroDivisionError" in info.traceback
        """
    )


def test_queues_of_kombu_are_declared_and_routed_to(python: Python) -> None:
    python.code(
        """
        from celery import Celery
        from kombu import Exchange, Queue, binding
        media = Exchange("media", type="topic")
        app = Celery("t", broker="memory://", task_default_queue="plain", task_queues=(
            Queue("plain"), Queue("video", media, routing_key="media.video.#"),
            Queue("first", Exchange("other"), "k", max_priority=5, queue_arguments={"x-queue-mode": "lazy"}),
        ), task_routes={"t.cut": {"exchange": "media", "routing_key": "media.video.cut"}, "t.low": {"queue": "first"}})
        assert app.queue_for("t.cut").name == "video"
        assert app.queue_for("t.low").max_priority == 5
        assert app.queue_for("t.low").arguments["x-queue-mode"] == "lazy"
        assert app.queue_for("t.other").name == "plain"
        queue = app.amqp.queues["video"]
        assert (queue.exchange.name, queue.exchange.type, queue.routing_key) == ("media", "topic", "media.video.#")
        assert sorted(app.amqp.queues) == ["first", "plain", "video"] and app.amqp.default_queue.name == "plain"
        assert app.amqp.router.route({}, "t.cut")["queue"].name == "video"
        """
    )


def test_a_registered_serializer_serves_tasks(python: Python) -> None:
    python.code(
        """
        import json
        from kombu.serialization import register
        from celery import Celery
        from celery.contrib.testing.worker import start_worker
        register("rot", lambda v: json.dumps(v)[::-1], lambda d: json.loads(d.decode()[::-1]), "application/x-rot")
        app = Celery("t", broker="memory://", backend="cache+memory://")
        app.conf.update(task_serializer="rot", accept_content=["rot", "json"])
        @app.task
        def add(x, y): return x + y
        with start_worker(app, perform_ping_check=False):
            assert add.delay(2, 3).get(timeout=10) == 5
        """
    )


def test_a_type_that_is_registered_for_json_travels(python: Python) -> None:
    python.code(
        """
        from kombu.utils.json import register_type
        from celery import Celery
        class Money:
            def __init__(self, cents): self.cents = cents
        register_type(Money, "money", lambda money: money.cents, Money)
        from umbel.serialization import json_dumps, json_loads
        assert json_loads(json_dumps(Money(7))).cents == 7
        """
    )


def test_a_ping_of_the_broker(python: Python) -> None:
    python.code(
        """
        from celery import Celery
        from umbel.celery.connection import Connection
        from kombu.exceptions import OperationalError
        app = Celery("t", broker="sqlite:///ping.db")
        app.send_task("t.x"); app.send_task("t.y")
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=0, timeout=5)
            assert connection.connected
            assert connection.default_channel.queue_declare(queue="celery", passive=True).message_count == 2
            try:
                connection.default_channel.basic_publish
            except AttributeError as error:
                assert "app.send_task" in str(error)
        assert not connection.connected
        with app.connection_or_acquire() as again, app.producer_or_acquire():
            assert again.connect()
        missed = []
        try:
            broken = Connection("sqlite:////proc/nowhere/all.db")
            broken.ensure_connection(errback=lambda error, interval: missed.append(interval), max_retries=2,
                                     interval_start=0.01, interval_step=0.01)
        except OperationalError:
            assert len(missed) == 2, missed
        else:
            raise AssertionError
        """
    )


def test_a_part_of_kombu_that_we_do_not_have_says_so(tmp_path: Path) -> None:
    bare = Python("bare", tmp_path)
    said = bare.code("from kombu.pools import producers", status=1)
    assert "pip install kombu for all of it" in said
    said = bare.code("import kombu; kombu.Consumer()", status=1)
    assert "NotImplementedError: Umbel's workers consume tasks" in said


# -- programs --------------------------------------------------------------------------------------------------------

TESTS = """
import pytest
from celery import shared_task
from celery.contrib.testing.worker import start_worker
from celery.result import AsyncResult
from celery.worker import state

@pytest.fixture(scope="session")
def celery_config():
    return {"task_serializer": "json", "result_extended": True}

@pytest.fixture(scope="session")
def celery_includes():
    return ["shop_tasks"]

@shared_task
def mul(x, y):
    return x * y

def test_an_app_of_its_own(celery_app):
    @celery_app.task
    def add(x, y):
        return x + y
    assert add.apply((1, 2)).get() == 3
    assert celery_app.conf.broker_url == "memory://" and celery_app.conf.result_extended

def test_a_worker(celery_app, celery_worker):
    assert mul.delay(4, 4).get(timeout=10) == 16
    assert "shop_tasks.total" in celery_app.tasks
    assert celery_app.send_task("shop_tasks.total", ([1, 2, 3],)).get(timeout=10) == 6

def test_a_task_that_is_made_late(celery_app, celery_worker):
    @celery_app.task
    def late():
        return "late"
    celery_worker.reload()
    assert late.delay().get(timeout=10) == "late"

@pytest.mark.celery(task_always_eager=True)
def test_the_marker(celery_app):
    assert celery_app.conf.task_always_eager

def test_start_worker_by_hand(celery_app):
    with start_worker(celery_app, pool="threads", concurrency=2, perform_ping_check=True) as worker:
        assert "@" in worker.hostname
        assert mul.delay(3, 3).get(timeout=10) == 9

def test_a_failure_is_raised_here(celery_app, celery_worker):
    @celery_app.task
    def fail():
        raise KeyError("x")
    with pytest.raises(KeyError):
        fail.delay().get(timeout=10)

# The last: a worker in memory takes what others send, too.
def test_the_session_worker(celery_session_app, celery_session_worker):
    assert mul.delay(2, 5).get(timeout=10) == 10
    assert state.total_count["celery.ping"] >= 1
"""


@pytest.mark.parametrize("kind", ["installed", "folder"])
def test_pytest_with_celerys_fixtures(beside: Python, kind: str) -> None:
    (beside.folder / "shop_tasks.py").write_text(
        "from celery import shared_task\n@shared_task\ndef total(values):\n    return sum(values)\n"
    )
    (beside.folder / "conftest.py").write_text('pytest_plugins = ("celery.contrib.pytest",)\n')
    (beside.folder / "test_shop.py").write_text(TESTS)
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir", str(beside.folder)]
    if kind == "folder":
        # As it is, with the plugin of the real celery registered for every run: under the alias that is ours.
        out = beside.run("-m", "pytest", *options, switch=True)
    else:
        out = beside.run("-m", "umbel.celery", "-m", "pytest", *options)
    assert "7 passed" in out


OPTIONS = """
import click
from celery import Celery, bootsteps
app = Celery("steps", broker="sqlite:///steps.db", backend="sqlite:///steps.db")
app.user_options["worker"].add(click.Option(["--shelf"], default="none", help="Where it goes."))

class Touch(bootsteps.StartStopStep):
    requires = {"celery.worker.components:Timer"}

    def __init__(self, worker, shelf="unset", **options):
        self.shelf = shelf

    def start(self, worker):
        print(f"step starts on {worker.hostname} shelf {self.shelf}", flush=True)
        worker.timer.call_repeatedly(0.5, self.tick, (worker,), priority=10)

    def tick(self, worker):
        print("step ticks", flush=True)

    def stop(self, worker):
        print("step stops", flush=True)

class First(bootsteps.Step):
    def create(self, worker):
        print("first is made", flush=True)

Touch.requires = {First}
app.steps["worker"].add(Touch)
app.steps["worker"].add(First)

@app.task
def add(x, y):
    return x + y
"""


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_steps_and_options_of_the_app(beside: Python, pool: str) -> None:
    (beside.folder / "steps.py").write_text(OPTIONS)
    options = ("-P", pool, "-c", "1", "-l", "info", "--shelf", "top", "-n", "w1@here")
    with worker("steps", *options, cwd=beside.folder, env=beside.env(switch=True), celery=True) as running:
        running.expect("first is made")
        running.expect("step starts on w1@here shelf top")
        running.expect("step ticks")
        beside.run("-c", "from steps import add; assert add.delay(1, 2).get(timeout=20) == 3", switch=True)
    assert "step stops" in running.output
    order = [running.output.index(words) for words in ("first is made", "step starts", "step ticks", "step stops")]
    assert order == sorted(order)


def test_as_celery_and_its_variable(beside: Python) -> None:
    (beside.folder / "proj.py").write_text("from celery import Celery\napp = Celery('proj', broker='memory://')\n")
    words = ["-m", "umbel", "--as-celery", "-A", "proj", "report"]
    assert "app      -> proj" in beside.run(*words)
    words.remove("--as-celery")
    assert "module 'proj' holds no app" in beside.run(*words, status=78)
    env = {**beside.env(), "UMBEL_AS_CELERY": "1"}
    done = subprocess.run(
        beside.command(*words),
        cwd=beside.folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0 and "app      -> proj" in done.stdout


TRACED = """
from celery import Celery
import celery.app.trace as trace

original = trace.build_tracer

def build(name, task, *args, **kwargs):
    tracer = original(name, task, *args, **kwargs)
    def traced(uuid, args, kwargs, request=None):
        print(f"before {name} {request['id'] == uuid} {request['retries']}", flush=True)
        answer = tracer(uuid, args, kwargs, request)
        print(f"after {name} {answer.retval}", flush=True)
        return answer
    return traced

trace.build_tracer = build
app = Celery("traced", broker="sqlite:///traced.db", backend="sqlite:///traced.db")

@app.task
def add(x, y):
    return x + y
"""


def test_a_tracer_that_somebody_wraps_is_around_every_attempt(beside: Python) -> None:
    (beside.folder / "traced.py").write_text(TRACED)
    options = ("-c", "1", "-l", "info")
    with worker("traced", *options, cwd=beside.folder, env=beside.env(switch=True), celery=True, status=0) as running:
        beside.run("-c", "from traced import add; assert add.delay(1, 2).get(timeout=20) == 3", switch=True)
        running.expect("before traced.add True 0")
        running.expect("after traced.add 3")
