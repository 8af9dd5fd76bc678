"""Every question and order of Celery's command line, put to our worker and to Celery's at once: the answers are alike.

The command line has the broker's URL and no app, as on a machine that has none of the project's code.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import peers
from support import WorkerProcess, environment, eventually, run, worker
from umbel.celery import switch_path

# Programs of others start slowly on a busy machine.
pytestmark = pytest.mark.timeout(240)

PROGRAMS = Path(__file__).resolve().parent / "programs"
OURS, THEIRS = "ours@box", "theirs@box"
BOTH = ("-d", f"{OURS},{THEIRS}", "-t", "10")

#: Where the shapes differ, and why.
DIFFERENT = {
    "stats.pool.writes": "no pool of ours writes to processes",
    "stats.broker.transport_options": "what each of them knows of the same server",
    "memsample": "Celery says nothing without psutil",
    "conf": "each tells of its own settings",
    "reserved": "ours gives back what it cannot start at once",
    "active.acknowledged": "Celery acknowledges before the task runs",
}


@pytest.fixture
def celery(redis_url: str) -> Iterator[Celery]:
    """Two workers on one broker, each with a queue of its own, a task that runs and one that waits for its time."""
    python = peers.python("celery57")
    plain = environment(BROKER=redis_url, BACKEND=redis_url, PYTHONDONTWRITEBYTECODE="1", C_FORCE_ROOT="1")
    alias = {**plain, "PYTHONPATH": switch_path()}
    options = ("-c", "1", "-l", "info")
    with (
        worker("watched", "-n", OURS, "-Q", "ours", *options, cwd=PROGRAMS, env=alias, celery=True) as ours,
        worker(
            "watched",
            "-n",
            THEIRS,
            "-Q",
            "theirs",
            *options,
            cwd=PROGRAMS,
            env=plain,
            celery=True,
            python=python,
            status=None,
        ) as theirs,
    ):
        yield Celery(redis_url, plain, (ours, theirs))


class Celery:
    """The command line of Celery 5.7."""

    def __init__(self, url: str, env: Mapping[str, str], workers: tuple[WorkerProcess, WorkerProcess]) -> None:
        self.url = url
        self.env = env
        self.workers = workers

    def all(self, *commands: tuple[str, ...]) -> list[tuple[int, str]]:
        """Run the commands one after the other; return each one's exit code and output."""
        words = [["-b", self.url, *command] for command in commands]
        done = subprocess.run(
            [peers.python("celery57"), "-W", "ignore", str(PROGRAMS / "ask_all.py")],
            input=json.dumps(words), env=dict(self.env), capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return [(each["code"], each["text"]) for each in json.loads(done.stdout.splitlines()[-1])]

    def asked(self, *commands: tuple[str, ...]) -> list[tuple[Any, Any]]:
        """Return what our worker answers to each command, and what Celery's does."""
        answers = []
        for command, (code, text) in zip(
            commands, self.all(*((*command, *BOTH, "--json") for command in commands)), strict=True
        ):
            assert code == 0, (command, text)
            found = json.loads(text)
            replies = (
                found if isinstance(found, dict) else {node: value for each in found for node, value in each.items()}
            )
            assert set(replies) == {OURS, THEIRS}, (command, replies)
            answers.append((replies[OURS], replies[THEIRS]))
        return answers

    def names(self, kind: str) -> set[str]:
        """Return the commands of a kind that this Celery has."""
        ((code, text),) = self.all((kind, "--list"))
        assert code == 0, text
        return set(re.findall(r"^  (\w+)", text, re.MULTILINE))


def differences(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    """Yield where the shapes of two answers differ: keys, kinds, and the kinds of what is in a list."""
    if path in DIFFERENT:
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if set(ours) != set(theirs):
            yield f"{path}: {sorted(ours)} and {sorted(theirs)}"
        for key in ours.keys() & theirs.keys():
            yield from differences(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list):
        if bool(ours) != bool(theirs):
            yield f"{path}: {len(ours)} and {len(theirs)} entries"
        for left, right in zip(ours, theirs, strict=False):
            yield from differences(left, right, f"{path}[]")
    elif type(ours) is not type(theirs):
        yield f"{path}: {ours!r} and {theirs!r}"


@contextmanager
def at_work(celery: Celery, folder: Path) -> Iterator[None]:
    """Have each worker run a task, and know of another that is not due, while the block runs."""
    code = """
import os, time
from watched import add, hold
for queue in ("ours", "theirs"):
    path = os.path.join(os.environ["FOLDER"], queue)
    add.apply_async((1, 2), {}, task_id="later", countdown=3600, queue=queue)
    hold.apply_async((path,), task_id="held", queue=queue)
    while not os.path.exists(path + ".started"):
        time.sleep(0.02)
"""
    env = {**celery.env, "FOLDER": str(folder)}
    run(code, cwd=PROGRAMS, env=env, python=peers.python("celery57"))
    try:
        yield
    finally:
        for queue in ("ours", "theirs"):
            (folder / queue).touch()


def test_questions(celery: Celery, tmp_path: Path) -> None:
    arguments = {"query_task": ("held", "later"), "memdump": ("3",), "registered": ("max_retries", "name")}
    names = sorted(celery.names("inspect"))
    with at_work(celery, tmp_path):
        eventually(lambda: all(len(each) == 1 for each in celery.asked(("inspect", "scheduled"))[0]))
        answers = dict(
            zip(
                names,
                celery.asked(*(("inspect", name, *arguments.get(name, ())) for name in names)),
                strict=True,
            )
        )
    found = [each for name, (ours, theirs) in answers.items() for each in differences(ours, theirs, name)]
    assert not found, found
    # Shapes of nothing would be alike as well.
    for ours, theirs in (answers["active"], answers["scheduled"]):
        assert len(ours) == len(theirs) == 1
    (active,), (their_active,) = answers["active"]
    assert (
        (active["id"], active["name"], active["kwargs"])
        == ("held", "hold", {})
        == tuple(their_active[name] for name in ("id", "name", "kwargs"))
    )
    (later,), (their_later,) = answers["scheduled"]
    assert later["request"]["args"] == their_later["request"]["args"] == [1, 2]
    assert later["priority"] == their_later["priority"]
    queries = answers["query_task"]
    assert [{id: state for id, (state, _) in each.items()} for each in queries] == [
        {"held": "active", "later": "scheduled"}
    ] * 2
    assert answers["registered"][0] == answers["registered"][1] and len(answers["registered"][0]) == 4
    assert [set(each) for each in answers["objgraph"]] == [{"error"}] * 2
    assert re.fullmatch(r"[\d.]+MB", answers["memsample"][0])


def test_orders(celery: Celery) -> None:
    orders: list[tuple[str, ...]] = [
        ("rate_limit", "add", "10/m"), ("rate_limit", "nosuch", "10/m"), ("rate_limit", "add", "wrong"),
        ("rate_limit", "add"), ("rate_limit", "add", "0"),
        ("time_limit", "add", "10", "20"), ("time_limit", "add", "10"), ("time_limit", "nosuch", "10"),
        ("add_consumer", "other"), ("cancel_consumer", "other"), ("cancel_consumer", "other"),
        ("add_consumer", "topical", "topical", "topic", "a.#"),
        ("enable_events",), ("enable_events",), ("disable_events",), ("disable_events",),
        ("heartbeat",), ("pool_grow", "2"), ("pool_grow",),
        ("autoscale", "3", "1"), ("pool_restart",),
        ("revoke", "a", "b"), ("revoke", "a"), ("terminate", "KILL", "a"),
        ("revoke_by_stamped_headers", "a=b"), ("revoke_by_stamped_headers", "nonsense"),
    ]  # fmt: skip
    # An election is among Celery's workers; a worker that shuts down does not answer.
    assert {order[0] for order in orders} | {"pool_shrink", "election", "shutdown"} == celery.names("control")
    for order, (ours, theirs) in zip(orders, celery.asked(*(("control", *order) for order in orders)), strict=True):
        found = list(differences(ours, theirs, order[0]))
        assert not found, (order, found)
        if isinstance(theirs, dict) and "ok" in theirs and order != ("rate_limit", "add", "0"):
            # Celery's command line sends a text, which is true, and so it calls this one a new limit.
            assert sorted(ours["ok"]) == sorted(theirs["ok"]), (order, ours, theirs)
    assert [set(each) for each in celery.asked(("inspect", "revoked"))[0]] == [{"a", "b"}] * 2
    # Celery cannot take away a process that has not come up yet, and would take one twice that is going.
    eventually(lambda: processes(celery) == [4, 4], timeout=90)
    for shrink, left in ((("2",), 2), ((), 1)):
        assert celery.asked(("control", "pool_shrink", *shrink)) == [({"ok": "pool will shrink"},) * 2]
        eventually(lambda left=left: processes(celery) == [left, left], timeout=90)  # type: ignore[misc]
    (_, text), (bad, _), (_, gone) = celery.all(
        ("control", "shutdown", *BOTH[:2], "-t", "1"), ("control", "nosuch"), ("status", "-t", "0.5")
    )
    assert "Shutting down" in text or "No nodes replied" in text
    assert bad == 2
    for each in celery.workers:
        each.expect("Got shutdown from remote")
    assert "No nodes replied" in gone or "Error" in gone


def processes(celery: Celery) -> list[int]:
    """Return how many processes our worker has, and Celery's."""
    return [len(each["pool"]["processes"]) for each in celery.asked(("inspect", "stats"))[0]]


def test_status_report_list_purge_and_events(celery: Celery) -> None:
    python = peers.python("celery57")
    status, report, names, answer, nothing = celery.all(
        ("status", "-t", "5", "-d", f"{OURS},{THEIRS}"),
        ("inspect", "report", *BOTH),
        ("list", "bindings"),
        ("call", "add", "-a", "[2, 3]", "--queue", "ours"),
        ("purge", "-f", "-Q", "nobody_reads_this"),
    )
    assert status[0] == 0 and f"{OURS}: OK" in status[1] and "2 nodes online." in status[1]
    assert report[0] == 0 and "software -> umbel:" in report[1] and "software -> celery:" in report[1]
    # Over Redis it fails against its own workers too.
    assert names[0] in (0, 1)
    assert answer[0] == 0 and re.fullmatch(r"[0-9a-f-]{36}", answer[1].strip())
    assert nothing == (0, "No messages purged from 1 queue.\n")
    run("from watched import add\nfor n in range(5): add.apply_async((n, n), queue='parked')", cwd=PROGRAMS,
        env={**celery.env, "PYTHONPATH": switch_path()})  # fmt: skip
    ((code, text),) = celery.all(("purge", "-f", "-Q", "parked"))
    assert code == 0 and "Purged 5 messages from 1 known task queue." in text, text

    words = [python, "-W", "ignore", "-m", "celery", "-b", celery.url, "events", "--dump"]
    dump = WorkerProcess(words, PROGRAMS, celery.env)
    try:
        dump.expect(f"{OURS} [")
        celery.asked(("control", "enable_events"))
        celery.all(*(("call", "add", "-a", "[2, 3]", "--queue", queue) for queue in ("ours", "theirs")))
        for node in (OURS, THEIRS):
            for words_of_event in ("heartbeat:", "task received: add(", "task started: add(", "task succeeded: add("):
                eventually(lambda n=node, w=words_of_event: any(n in line and w in line for line in dump.lines))  # type: ignore[misc]
        assert {line.count("=") for line in events_of(dump, OURS, "task succeeded")} == {
            line.count("=") for line in events_of(dump, THEIRS, "task succeeded")
        }
        for kind in ("heartbeat:", "task received", "task started", "task succeeded"):
            ours, theirs = fields(dump, OURS, kind), fields(dump, THEIRS, kind)
            # Ours say on their arrival where they came from, in fields that Celery's own State knows.
            assert ours - {"exchange", "routing_key"} == theirs and ours, (kind, ours, theirs)
    finally:
        dump.stop()


def events_of(dump: WorkerProcess, node: str, kind: str) -> list[str]:
    """Return the lines of one kind of event of one worker."""
    return [line for line in dump.lines if line.startswith(node) and kind in line]


def fields(dump: WorkerProcess, node: str, kind: str) -> set[str]:
    """Return the names of the fields of one kind of event of one worker."""
    return {name for line in events_of(dump, node, kind) for name in re.findall(r"\b([a-z_]+)=", line)}
