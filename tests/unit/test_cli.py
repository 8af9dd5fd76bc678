"""The command line: help, where -A may stand, what is refused, and the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from umbel.cli.daemon import pidfile
from umbel.cli.errors import Trouble
from umbel.cli.main import COMMANDS, cli

APP = """
from umbel import Umbel
app = Umbel("shop", broker="sqlite:///{folder}/shop.db", backend="sqlite:///{folder}/shop.db")

@app.task
def add(x, y):
    return x + y
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an app in a module of its own name, and nothing of it left behind."""
    name = f"shop_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(APP.format(folder=tmp_path))
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "unmoved.py").write_text("import celery\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for variable in ("APP", "BROKER_URL", "RESULT_BACKEND", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(variable, raising=False)
    before = dict(os.environ)
    yield Path(name)
    os.environ.clear()
    os.environ.update(before)
    for module in (name, "broken", "unmoved"):
        sys.modules.pop(module, None)


def umbel(*args: str) -> Result:
    return CliRunner().invoke(cli, args, prog_name="umbel")


def test_help_names_every_command() -> None:
    result = umbel("--help")
    assert result.exit_code == 0
    assert all(f"  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_command_has_help(name: str) -> None:
    result = umbel(name, "-h")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"Usage: umbel {name}")


def test_help_and_version_import_neither_app_nor_driver() -> None:
    code = (
        "import sys\nfrom umbel.cli.main import cli\n"
        "for args in (['--help'], ['--version']):\n"
        "    cli.main(args, standalone_mode=False)\n"
        "heavy = {'umbel.app', 'umbel.settings', 'umbel.drivers', 'redis', 'asyncio', 'sqlite3', 'msgspec', 'kombu',"
        " 'celery', 'multiprocessing', 'ssl'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_an_unknown_command_is_a_usage_error_that_names_the_nearest() -> None:
    result = umbel("wroker")
    assert result.exit_code == 2
    assert "'worker'" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--time-limit", "-3"],
        ["--soft-time-limit", "soon"],
        ["--heartbeat-interval", "0"],
        ["-c", "2", "--nonsense"],
        ["-l", "loud"],
        ["--max-tasks-per-child", "-1"],
    ],
)
def test_what_a_worker_cannot_do_is_a_usage_error(project: Path, options: list[str]) -> None:
    result = umbel("-A", str(project), "worker", *options)
    assert result.exit_code == 2, result.output
    assert "Error: " in result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-A", "nowhere", "worker"], "nowhere"),
        (["-A", "broken", "worker"], "nowhere_to_be_found"),
        (["worker"], "-A module"),
        (["-A", "PROJECT", "worker", "-P", "gevent"], "-P asyncio"),
        (["-A", "PROJECT", "worker", "-P", "fibres"], "unknown pool"),
        (["-A", "PROJECT", "worker", "-c", "none"], "-c/--concurrency"),
        (["-A", "PROJECT", "-b", "memory://", "worker", "-P", "prefork"], "-P threads"),
        (["-A", "PROJECT", "-b", "rdis://localhost", "worker"], "redis"),
        (["-A", "PROJECT", "--workdir", "missing", "worker"], "missing"),
    ],
)
def test_bad_configuration_ends_with_78_and_one_line(project: Path, args: list[str], said: str) -> None:
    result = umbel(*[str(project) if arg == "PROJECT" else arg for arg in args])
    assert result.exit_code == 78, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("SecurityWarning")]
    assert len(lines) == 1 and lines[0].startswith("Error: ") and said in lines[0]


def test_who_has_not_changed_the_import_is_told_of_the_alias(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "celery", None)
    result = umbel("-A", "unmoved", "worker")
    assert result.exit_code == 78, result.output
    assert "--as-celery" in result.stderr


def test_the_app_may_stand_before_or_after_the_command(project: Path) -> None:
    assert umbel("-A", str(project), "list", "bindings").exit_code == 0
    assert umbel("list", "bindings", "-A", str(project)).exit_code == 0
    assert umbel("list", "-A", str(project), "bindings").exit_code == 0


def test_the_app_may_come_from_the_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_APP", str(project))
    result = umbel("list", "bindings")
    assert result.stdout.splitlines() == [
        "Queue                        Exchange                     Routing Key",
        "----------------             ----------------             ----------------",
        "celery                       celery                       celery",
    ]


def test_call_then_look_then_purge(project: Path) -> None:
    app = str(project)
    called = umbel("-A", app, "call", f"{app}.add", "-a", "[1, 2]", "-k", "{}")
    assert called.exit_code == 0, called.output
    assert len(called.stdout.strip()) == 36
    later = umbel("-A", app, "call", f"{app}.add", "-a", "[1, 2]", "--countdown", "3600", "--expires", "7200")
    assert later.exit_code == 0, later.output
    assert umbel("-A", app, "list", "queues").stdout.split()[-5:] == ["celery", "1", "1", "0", "0"]
    assert umbel("-A", app, "purge").exit_code == 4
    assert umbel("-A", app, "purge", "-f").stdout == "Purged 2 messages from 1 known task queue.\n"
    assert umbel("-A", app, "purge", "-f").stdout == "No messages purged from 1 queue.\n"


@pytest.mark.parametrize("option", [["-a", "{}"], ["-a", "[1"], ["-k", "[]"], ["--eta", "tomorrow"]])
def test_unreadable_arguments_of_a_call_are_usage_errors(project: Path, option: list[str]) -> None:
    assert umbel("-A", str(project), "call", "x", *option).exit_code == 2


def test_a_result_that_does_not_come_times_out(project: Path) -> None:
    result = umbel("-A", str(project), "result", "no-such-id", "--timeout", "0.05")
    assert (result.exit_code, result.stdout) == (75, "")


def test_an_id_that_nobody_knows_is_not_waited_for(project: Path) -> None:
    done = umbel("-A", str(project), "result", "no-such-id")
    assert done.exit_code == 3 and "nothing is known of no-such-id" in done.stderr, done.output
    assert umbel("-A", str(project), "result", "no-such-id", "--wait", "--timeout", "1.5").exit_code == 75


def test_what_may_still_come_is_waited_for(project: Path) -> None:
    app = str(project)
    sent = umbel("-A", app, "call", f"{app}.add", "-a", "[1, 2]").stdout.strip()
    done = umbel("-A", app, "result", sent, "--timeout", "2")
    assert done.exit_code == 75 and "It is number 1 of 1 in the queue 'celery'" in done.stderr, done.output
    sys.path.insert(0, ".")
    add = __import__(app).add
    later = (add.si(1, 2) | add.si(3, 4)).delay().id
    add.app.close()
    done = umbel("-A", app, "result", later, "--timeout", "2")
    assert done.exit_code == 75 and "a later task of a workflow" in done.stderr, done.output
    quiet = umbel("-A", app, "-q", "result", later, "--timeout", "2")
    assert quiet.stderr.startswith("Error: no result of"), quiet.output


@pytest.mark.parametrize(
    "command",
    [["metrics", "serve", "--port", "0"], ["dashboard", "-p", "0", "--trust-header", "x", "--trust-from", "127.0.0.1"]],
    ids=["metrics", "dashboard"],
)
@pytest.mark.parametrize(
    ("host", "code", "said"),
    [("no such host", 78, "there is no such name"), ("192.0.2.7", 69, "that is no address of this machine")],
)
def test_where_nobody_can_listen_is_told(project: Path, command: list[str], host: str, code: int, said: str) -> None:
    done = umbel("-A", str(project), *command, "--host", host)
    assert done.exit_code == code and f"--host '{host}': {said}" in done.stderr, done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rate_limit"], "rate_limit needs task_name and rate_limit: rate_limit <task_name> <rate_limit"),
        (["rate_limit", "add"], "rate_limit needs rate_limit: "),
        (["time_limit", "add"], "time_limit needs soft: "),
        (["add_consumer"], "add_consumer needs queue: "),
        (["terminate"], "terminate needs signal: "),
    ],
)
def test_an_order_without_its_arguments_is_a_usage_error(project: Path, words: list[str], said: str) -> None:
    done = umbel("-A", str(project), "control", *words)
    assert done.exit_code == 2 and said in done.stderr, done.output


def test_a_question_that_takes_long_is_for_those_who_are_there(project: Path) -> None:
    # Its answer may take a minute, and would be waited for by whoever asks nobody.
    started = time.monotonic()
    assert umbel("-A", str(project), "inspect", "objgraph").exit_code == 69
    assert time.monotonic() - started < 30


def test_no_worker_is_alive(project: Path) -> None:
    result = umbel("-A", str(project), "status")
    assert (result.exit_code, result.stderr) == (69, "Error: No nodes replied within time constraint\n")


def test_status_reads_what_workers_left(project: Path) -> None:
    sys.path.insert(0, ".")
    app = __import__(str(project)).app
    app.broker.store().put("worker:w1@vm", json.dumps({"pid": 1}).encode(), ttl=60)
    app.close()
    result = umbel("-A", str(project), "status", "-C")
    assert (result.exit_code, result.stdout) == (0, "->  w1@vm: OK\n\n1 node online.\n")
    as_json = umbel("-A", str(project), "status", "--json")
    assert json.loads(as_json.stdout) == {"w1@vm": {"ok": "pong", "pid": 1}}
    assert umbel("-A", str(project), "status", "-d", "other@vm").exit_code == 69


def test_report_hides_passwords_and_names_what_does_nothing(project: Path) -> None:
    with open(f"{project}.py", "a") as module:
        module.write("app.conf.update(redis_password='hush', worker_state_db='revoked.db')\n")
    result = umbel("-A", str(project), "-b", "redis://:s3cret@localhost/0", "report")
    assert result.exit_code == 0, result.output
    assert "software -> umbel:" in result.stdout
    assert "transport:redis" in result.stdout
    assert "s3cret" not in result.stdout
    assert "worker_state_db" in result.stdout.splitlines()[-1]


def test_a_pidfile_is_kept_while_running_and_a_stale_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "w.pid"
    with pidfile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path.write_text(f"{ended.pid}\n")
    with pidfile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_pidfile_of_a_living_process_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.pid"
    path.write_text(f"{os.getppid()}\n")
    with pytest.raises(Trouble) as caught, pidfile(str(path)):
        pass
    assert caught.value.exit_code == 73
    assert path.exists()
