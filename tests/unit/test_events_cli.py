"""The commands around remote control that need no worker: multi's plans, logtool, upgrade, migrate."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from umbel import Umbel
from umbel.cli.logtool import Audit
from umbel.cli.main import cli
from umbel.cli.multi import Node, plan_nodes, read_words
from umbel.cli.upgrade import renamed
from umbel.interfaces import Place


def nodes(*words: str) -> list[Node]:
    return plan_nodes(read_words(words), ["umbel"])


def option(node: Node, name: str) -> str:
    return node.argv[node.argv.index(name) + 1]


def test_a_number_of_workers() -> None:
    found = nodes("3", "--hostname=box", "-c", "3", "-c:1", "10")
    assert [node.name for node in found] == ["celery1@box", "celery2@box", "celery3@box"]
    assert [option(node, "-c") for node in found] == ["10", "3", "3"]
    assert found[0].argv[:6] == ["umbel", "worker", "--detach", "-n", "celery1@box", "--pidfile=celery1.pid"]
    assert [node.name for node in nodes("2", "--range-prefix=w", "-n", "box")] == ["w1@box", "w2@box"]


def test_named_workers() -> None:
    found = nodes("mail@%h", "video", "--hostname=box", "-Q:mail", "mail", "-Q:2", "video", "--logfile=log/%n%I.log")
    assert found[1].name == "video@box" and option(found[1], "-Q") == "video"
    assert option(found[0], "-Q") == "mail" and "--logfile=log/mail%I.log" in found[0].argv


def test_options_for_some() -> None:
    found = nodes("5", "-n", "box", "-Q:1-3", "images", "-Q:4,5", "data", "-E", "--time-limit=5", "--", "--uid=me")
    assert [option(node, "-Q") for node in found] == ["images"] * 3 + ["data"] * 2
    assert all("-E" in node.argv and "--time-limit=5" in node.argv and node.argv[-1] == "--uid=me" for node in found)


def test_signals() -> None:
    assert read_words(["3", "-KILL"]).signum == 9
    assert read_words(["3", "-15"]).signum == 15
    assert read_words(["3", "-c", "2"]).signum == 15


def test_who_is_not_there() -> None:
    with pytest.raises(click.UsageError, match="say which workers"):
        nodes("-c", "3")
    with pytest.raises(click.UsageError, match="no worker is meant by 'jane'"):
        nodes("mail", "video", "-c:jane", "3")


def umbel(*args: str) -> str:
    result = CliRunner().invoke(cli, args, prog_name="umbel")
    assert result.exit_code == 0, result.output
    return result.output


def test_multi_shows_and_expands() -> None:
    shown = umbel("-A", "proj", "multi", "show", "2", "-n", "box", "-c", "3")
    assert shown.count(" -m umbel -A proj worker --detach -n celery") == 2
    assert umbel("multi", "names", "2", "-n", "box") == "celery1@box\ncelery2@box\n"
    assert umbel("multi", "expand", "/run/%n.pid", "a", "b") == "/run/a.pid\n/run/b.pid\n"
    assert "-n a@box" in umbel("multi", "get", "a", "a", "b", "-n", "box")
    assert CliRunner().invoke(cli, ["multi", "nonsense", "3"]).exit_code == 2


LOG = """\
[2026-11-21 18:00:00,000: INFO/MainProcess] w1@box ready.
[2026-11-21 18:00:01,000: INFO/ForkPoolWorker-1] Task add[1] received
[2026-11-21 18:00:01,000: INFO/ForkPoolWorker-1] Task add[1] succeeded in 0.1s: 3
[2026-11-21 18:00:02,000: INFO/ForkPoolWorker-1] Task add[2] received
[2026-11-21 18:00:02,000: INFO/ForkPoolWorker-1] Task add[2] retry: Retry in 1s
[2026-11-21 18:00:03,000: INFO/ForkPoolWorker-1] Task add[2] received
[2026-11-21 18:00:03,000: ERROR/ForkPoolWorker-1] Task add[2] raised unexpected: ValueError('no')
Traceback (most recent call last):
ValueError: no
[2026-11-21 18:00:04,000: INFO/ForkPoolWorker-1] Task hold[3] received
"""


def test_what_a_log_tells(tmp_path: Path) -> None:
    file = tmp_path / "w1.log"
    file.write_text(LOG)
    stats = umbel("logtool", "stats", str(file))
    assert "Task total: 3\nTask errors: 1\nTask success: 1\nTask completed: 2" in stats and "add: 2\nhold: 1" in stats
    assert umbel("logtool", "incomplete", str(file)) == "Did not complete: 3\n"
    assert umbel("logtool", "errors", str(file)).count("\n") == 1
    assert "raised unexpected" in umbel("logtool", "traces", str(file))
    assert umbel("logtool", "debug", str(file)).endswith("w1@box ready.\n")


def test_a_line_that_is_of_no_log() -> None:
    audit = Audit()
    assert list(audit.feed(["nonsense\n", "[x] Task\n"])) == [("trace", "nonsense"), ("trace", "[x] Task")]
    assert not audit.received


def test_old_names_of_settings(tmp_path: Path) -> None:
    assert renamed("BROKER_URL = 'x'\nMY_OWN = 1\n", upper=False) == "broker_url = 'x'\nMY_OWN = 1\n"
    file = tmp_path / "celeryconfig.py"
    file.write_text("CELERYD_CONCURRENCY = 4\n")
    umbel("upgrade", "settings", str(file))
    assert file.read_text() == "worker_concurrency = 4\n"
    assert (tmp_path / "celeryconfig.py.orig").read_text() == "CELERYD_CONCURRENCY = 4\n"
    assert "not seem to require" in umbel("upgrade", "settings", str(file))


def test_messages_are_copied_and_moved(tmp_path: Path) -> None:
    here, there = (f"sqlite:///{tmp_path}/{name}.db" for name in ("here", "there"))
    source = Umbel("source", broker=here, set_as_current=False)
    for number in range(5):
        source.send_task("even" if number % 2 == 0 else "odd", (number,), priority=number)
    source.send_task("late", countdown=1000)
    destination = Umbel("destination", broker=there, set_as_current=False)

    def sizes() -> tuple[int, int]:
        return source.broker.size("celery"), destination.broker.size("celery")

    assert "2 messages copied" in umbel("migrate", here, there, "-T", "odd")
    assert sizes() == (5, 2)
    assert "2 messages moved" in umbel("migrate", here, there, "-a", "-T", "odd")
    assert sizes()[0] == 3
    done = umbel("migrate", here, there, "-a", "-n", "2")
    assert "2 messages moved" in done and "1 wait for their time" in done
    assert sizes()[0] == 1 and source.broker.size("celery", Place.SCHEDULED) == 1
    umbel("migrate", here, there, "-a")
    assert sizes()[0] == 0
    raw = destination.broker.peek("celery")[0].raw
    assert b'"argsrepr":"(' in raw
    source.close()
    destination.close()
