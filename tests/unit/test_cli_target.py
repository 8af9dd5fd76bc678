"""Which app and which stores a command line means, what it hands on to processes of its own, and how errors end it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from support import environment
from umbel import Umbel, aliased
from umbel.cli import dev as dev_module
from umbel.cli.main import cli
from umbel.cli.transport import longest
from umbel.exceptions import BrokerError
from umbel.interfaces import ResultRecord
from umbel.queues import Queues

APP = """
import click
from umbel import Umbel

app = Umbel("jobs", broker="sqlite:///jobs.db")
app.user_options["worker"].add(click.Option(("--petal",)))

@app.task
def add(x, y):
    return x + y
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with an app in ``jobs.py``; the environment and the modules are put back."""
    (tmp_path / "jobs.py").write_text(APP)
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before, modules, own = dict(os.environ), set(sys.modules), environment(C_FORCE_ROOT="1")
    os.environ.clear()
    os.environ.update(own)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("jobs", "broken", "more"):
            del sys.modules[name]


def umbel(*args: str, **env: str) -> Result:
    return CliRunner().invoke(cli, args, prog_name="umbel", env=env)


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    line = line.replace("umbel", f"{shlex.quote(sys.executable)} -m umbel", 1)
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def one_line(result: Any) -> str:
    """Return what was said on standard error, which must be one line."""
    lines = [line for line in result.stderr.splitlines() if "SecurityWarning" not in line]
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    return str(lines[0])


# -- what is handed on ---------------------------------------------------------------------------------------------


def test_a_password_of_the_environment_is_in_nobodys_words(folder: Path) -> None:
    secret = {"UMBEL_BROKER_URL": "redis://:canary@h/0", "CELERY_RESULT_BACKEND": "redis://:canary@h/1"}
    shown = umbel("multi", "show", "1", "-A", "jobs", **secret)
    assert shown.exit_code == 0 and "worker" in shown.stdout and "canary" not in shown.stdout
    given = umbel("-b", "redis://a/0", "--result-backend", "redis://b/1", "multi", "show", "1", **secret)
    assert "-b redis://a/0 --result-backend redis://b/1 worker" in given.stdout


def test_workers_of_multi_get_what_stood_before_it(folder: Path) -> None:
    shown = umbel("-A", "jobs", "--config", "c", "--workdir", "w", "multi", "show", "1").stdout
    assert "-A jobs --config c --workdir w worker" in shown


def test_what_runs_under_the_alias_starts_others_under_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[Any] = []

    class Together:
        def __init__(self, given: Any, watched: Any) -> None:
            children.extend(given)

        def run(self) -> None:
            """Start nothing."""

    monkeypatch.setattr(dev_module, "Together", Together)
    for active, words in ((False, "-m umbel -A jobs"), (True, "-m umbel --as-celery -A jobs")):
        monkeypatch.setattr(aliased, "active", active)
        assert f"{words} worker" in umbel("-A", "jobs", "multi", "show", "1").stdout
        children.clear()
        assert umbel("-A", "jobs", "dev", "-p", "0").exit_code == 0
        assert children and all(words in " ".join(child._words) for child in children)


def test_multi_signals_nobody_who_only_got_the_number_of_a_worker(folder: Path) -> None:
    """Its file is older than that process; on a system that cannot tell, nobody is spared."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("when a process began cannot be known here")
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        file = folder / "celery1.pid"
        file.write_text(f"{stranger.pid}\n")
        for command in ("stop", "stopwait", "kill"):
            long_ago = time.time() - 3600
            os.utime(file, (long_ago, long_ago))
            done = umbel("multi", command, "1")
            assert done.exit_code == 0 and "DOWN" in done.stdout and stranger.poll() is None, done.output
    finally:
        stranger.kill()
        stranger.wait()


# -- where messages go ---------------------------------------------------------------------------------------------


def test_the_environment_says_broker_url_and_nothing_more(folder: Path) -> None:
    with open("jobs.py", "a") as module:
        module.write("app.conf.broker_write_url = 'sqlite:///written.db'\n")

    def waiting() -> dict[str, int]:
        found = {}
        for name in ("jobs", "written", "said"):
            if Path(f"{name}.db").exists():
                with Umbel("look", broker=f"sqlite:///{name}.db", set_as_current=False) as app:
                    found[name] = app.broker.size("celery")
        return found

    for variable in ("BROKER_URL", "CELERY_BROKER_URL", "UMBEL_BROKER_URL"):
        sent = umbel("-A", "jobs", "call", "jobs.add", **{variable: "sqlite:///said.db"})
        assert sent.exit_code == 0, sent.output
        os.environ.pop("UMBEL_BROKER_URL", None)
    assert waiting()["written"] == 3
    sent = umbel("-A", "jobs", "-b", "sqlite:///said.db", "call", "jobs.add", BROKER_URL="sqlite:///jobs.db")
    assert sent.exit_code == 0, sent.output
    assert waiting()["said"] == 1


def test_a_program_that_starts_the_command_line_may_give_its_options(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "more.py").write_text("task_default_queue = 'roses'\n")
    words = ["-b", "redis://:x@h/0", "--result-backend", "redis://g/1", "--config", "more", "--workdir", "elsewhere"]
    done = python(folder, f"import os, jobs; jobs.app.start({[*words, 'report']}); print(os.getcwd())")
    assert done.returncode == 0, done.stderr
    for said in ("transport:redis results:redis://g/1", "task_default_queue: 'roses'", "/elsewhere"):
        assert said in done.stdout
    assert "'redis://:x@h/0'" not in done.stdout


def test_a_program_that_starts_a_worker_may_give_its_options(folder: Path) -> None:
    words = ["worker", "-b", "redis://127.0.0.1:1/0", "--petal", "red", "-P", "solo"]
    done = python(
        folder,
        "import sys, jobs\njobs.app.conf.broker_connection_retry_on_startup = False\n"
        f"try: jobs.app.worker_main({words})\n"
        "except Exception as error: sys.__stdout__.write(f'{jobs.app.user_values} {error}')",
    )
    assert "{'petal': 'red'} cannot reach redis://127.0.0.1:1/0" in done.stdout, done.stdout + done.stderr


# -- how errors end a command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["worker", "-Q", "maill"], ["call", "jobs.add", "--queue", "maill"], ["purge", "-f", "-Q", "maill"]]
)
def test_a_queue_that_may_not_be_made_is_78_and_one_line(folder: Path, words: list[str]) -> None:
    with open("jobs.py", "a") as module:
        module.write(
            "app.conf.update(task_create_missing_queues=False, task_queues=['mail'], task_default_queue='mail')\n"
        )
    done = umbel("-A", "jobs", *words)
    assert done.exit_code == 78 and "'maill'" in one_line(done)


def test_a_result_without_a_place_for_results_is_78_and_one_line(folder: Path) -> None:
    done = umbel("-A", "jobs", "result", "some-id")
    assert done.exit_code == 78 and "set result_backend" in one_line(done)


@pytest.mark.parametrize(
    ("serializer", "code", "said"), [("json", 1, "not valid JSON"), ("yaml", 78, "accept_content")], ids=str
)
def test_a_result_that_cannot_be_read_is_one_line(folder: Path, serializer: str, code: int, said: str) -> None:
    with open("jobs.py", "a") as module:
        module.write(f"app.conf.update(result_backend='sqlite:///jobs.db', result_serializer='{serializer}')\n")
    with Umbel("look", broker="sqlite:///jobs.db", backend="sqlite:///jobs.db", set_as_current=False) as app:
        assert app.backend is not None
        app.backend.store(ResultRecord(task_id="some-id", state="SUCCESS", payload=b"{no", expires=60.0, reply_to=""))
    done = umbel("-A", "jobs", "result", "some-id")
    assert done.exit_code == code and said in one_line(done)


def test_a_broker_that_refuses_is_69_and_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(self: Any) -> list[str]:
        raise BrokerError("Redis at h answered with an error:\nOOM")

    monkeypatch.setattr(Queues, "known", known)
    done = umbel("-A", "jobs", "list", "queues")
    assert done.exit_code == 69 and one_line(done) == "Error: Redis at h answered with an error: OOM"
    done = umbel("-A", "jobs", "queues", "list", "-o", "json")
    assert done.exit_code == _error(done)["code"] == 69


@pytest.mark.parametrize("umask", ["9z", "-1", "07777"])
@pytest.mark.parametrize("words", [["worker", "-P", "solo"], ["beat"]], ids=lambda words: str(words[0]))
def test_a_mask_that_is_none_is_78_and_one_line(folder: Path, words: list[str], umask: str) -> None:
    done = umbel("-A", "jobs", *words, f"--umask={umask}")
    assert done.exit_code == 78 and f"--umask {umask}" in one_line(done)


def test_who_wants_it_gets_the_traceback(folder: Path) -> None:
    done = umbel("-A", "jobs", "-b", "rdis://h", "list", "queues", UMBEL_TRACEBACK="1")
    assert done.exit_code == 78 and "Traceback" in done.stderr


def test_a_camera_that_cannot_start_in_the_background_is_told(folder: Path) -> None:
    done = shell(folder, "umbel -A jobs events --camera jobs:app --detach --pidfile nowhere/camera.pid")
    assert done.returncode == 73, done.stderr


# -- in JSON ---------------------------------------------------------------------------------------------------------

#: What these need besides a word for each argument.
_MORE = {
    ("dead", "requeue"): ["--yes"],
    ("dead", "discard"): ["--yes"],
    ("schedules", "set"): ["--task", "x", "--schedule", "60"],
    ("schedules", "backfill"): ["--from", "2030-01-01", "--to", "2030-01-02"],
    ("queues", "move"): ["--yes"],
}


def _json_commands(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Yield the words of each command that takes ``-o json`` and looks at an app."""
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), name)
            assert found is not None
            yield from _json_commands(found, (*path, name))
    takes = any("--output" in each.opts for each in command.params)
    if takes and path != ("init",):
        arguments = [each for each in command.params if isinstance(each, click.Argument)]
        needed = [f"x{number}" for number, _ in enumerate(arguments)]
        yield [*path, *needed, *_MORE.get(path, ()), "-o", "json"]


def _error(done: Any) -> dict[str, Any]:
    assert done.stdout == "", done.stdout
    found: dict[str, Any] = json.loads(done.stderr)["error"]
    assert sorted(found) == ["code", "docs", "hint", "message"] and found["docs"].startswith("docs/")
    return found


@pytest.mark.parametrize("words", list(_json_commands()), ids=lambda words: " ".join(words[:2]))
def test_errors_are_json_where_that_is_asked_for(folder: Path, words: list[str]) -> None:
    nobody = umbel(*words)
    assert nobody.exit_code == 78 and "no app was given" in _error(nobody)["message"], nobody.output
    broken = umbel("-A", "broken", *words)
    assert broken.exit_code == 78 and "nowhere_to_be_found" in _error(broken)["message"], broken.output


def test_there_are_many_commands_that_answer_in_json() -> None:
    assert len(list(_json_commands())) > 30


@pytest.mark.parametrize(("url", "code"), [("rdis://h", 78), ("redis://127.0.0.1:1/0", 69)])
def test_an_error_about_the_broker_is_json_too(folder: Path, url: str, code: int) -> None:
    done = umbel("-b", url, "queues", "list", "-o", "json")
    assert done.exit_code == _error(done)["code"] == code


def test_metrics_of_no_app_are_refused(folder: Path) -> None:
    pytest.importorskip("prometheus_client")
    for words in (["metrics"], ["metrics", "serve", "--port", "0"]):
        assert umbel(*words).exit_code == 78
    assert list(folder.glob("**/*.db")) == []


# -- streams that are closed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["list bindings", "purge", "healthcheck -n nobody"])
def test_a_closed_stream_is_no_error(folder: Path, words: str, closed: str) -> None:
    expected = {"list bindings": 0, "purge": 4, "healthcheck -n nobody": 69}[words]
    done = shell(folder, f"umbel {'' if words.startswith('health') else '-A jobs '}{words} {closed}")
    assert done.returncode == expected and "Traceback" not in done.stderr, done.stderr


def test_a_file_never_gets_the_number_of_a_closed_stream(folder: Path) -> None:
    code = (
        "import os, sys; from umbel.__main__ import open_missing_streams; open_missing_streams(); "
        "found = os.open('held', os.O_CREAT | os.O_WRONLY); "
        "assert found > 2 and not os.read(0, 1), found; assert all(map(os.get_inheritable, range(3))); "
        "assert None not in (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__); "
        "print('said'); os.write(found, b'done')"
    )
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} <&- >&- 2>&-"
    subprocess.run(["sh", "-c", command], cwd=folder, timeout=60, check=True)
    assert (folder / "held").read_text() == "done"


# -- the rest --------------------------------------------------------------------------------------------------------


def test_doctor_knows_the_tasks_of_all_modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "more.py").write_text("from jobs import app\n@app.task(time_limit=7200)\ndef long(): ...\n")
    (folder / "jobs.py").write_text("from umbel import Umbel\napp = Umbel('j', broker='memory://', include=['more'])\n")
    asked: list[float | None] = []
    monkeypatch.setattr(
        "umbel.brokers.memory.MemoryBroker.advice", lambda self, queues, longest: asked.append(longest) or ()
    )
    assert umbel("-A", "jobs", "doctor").exit_code == 0
    assert asked == [7200.0]


def test_how_long_tasks_take_is_unknown_without_any() -> None:
    app = Umbel("none", broker="memory://", set_as_current=False)
    assert longest(app) is None
    app.task(name="short", time_limit=3)(lambda: None)
    assert longest(app) == 3.0
    app.task(name="any")(lambda: None)
    assert longest(app) is None


def test_healthcheck_is_a_command_like_others(folder: Path) -> None:
    assert "  healthcheck " in umbel("--help").stdout
    done = umbel("-A", "jobs", "healthcheck", "-n", "nobody", UMBEL_RUN_DIR=str(folder))
    assert done.exit_code == 69 and "no worker nobody" in done.stderr
    quiet = umbel("-q", "healthcheck", UMBEL_RUN_DIR=str(folder))
    assert (quiet.exit_code, quiet.output) == (69, "")
    assert umbel("-q", "healthcheck", "--nonsense").exit_code == 2
