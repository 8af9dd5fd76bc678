"""Celery's command line beside ours: its commands, arguments and options are there, or the reason why not is here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from support import environment
from umbel.cli.main import COMMANDS, cli

Path_ = tuple[str, ...]

#: What Celery has and we have not, and what to do instead.
MISSING = {
    "--loader": "modules of tasks are imported by settings (imports, include) and by app.autodiscover_tasks",
    "shell --eventlet": "there is no eventlet pool",
    "shell --gevent": "there is no gevent pool",
}
#: Those that stand for nothing unless they are given; here the default is told where it is decided.
OTHER_DEFAULTS = {
    "call --serializer": "task_serializer decides; Celery overrides that setting with json",
    "control --timeout": "1 s as there, unless the command itself asks for more",
    "inspect --timeout": "1 s as there, unless the command itself asks for more",
    "worker --hostname": "the same name, made when the worker starts",
    "worker --loglevel": "WARNING as there, said by the worker",
    "worker --optimization": "fair and default are one here",
    "worker --pool": "worker_pool decides; prefork as there",
}

# Celery's tree as plain values: in a process of its own, because it replaces a method of click's.
_TREE = """
import json, click
from celery.bin.celery import celery

def option(each):
    # An option that nobody gives is told from one whose default is None by a value that has no JSON.
    plain = each.default if isinstance(each.default, (str, int, float, bool)) else None
    return {"names": [*each.opts, *each.secondary_opts], "flag": each.is_flag, "default": plain}

def tree(command, path):
    options = [option(each) for each in command.params if isinstance(each, click.Option)]
    arguments = [each.name for each in command.params if isinstance(each, click.Argument)]
    yield {"path": path, "options": options, "arguments": arguments}
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from tree(command.commands[name], [*path, name])

print(json.dumps(list(tree(celery, []))))
"""


@pytest.fixture(scope="module")
def theirs() -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", _TREE], env=environment(), capture_output=True, text=True, check=True, timeout=60
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(found) > 35
    return found


def tree(command: click.Command, path: Path_ = ()) -> Iterator[tuple[Path_, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from tree(found, (*path, name))


@pytest.fixture(scope="module")
def ours() -> dict[Path_, click.Command]:
    return dict(tree(cli))


def spelt(path: Path_, name: str) -> str:
    return " ".join([*path, name])


def compared(theirs: list[dict[str, Any]]) -> Iterator[tuple[Path_, dict[str, Any]]]:
    for each in theirs:
        path = tuple(each["path"])
        # Until the scheduler is there.
        if path != ("beat",) or "beat" in COMMANDS:
            yield path, each


def options_of(command: click.Command) -> dict[str, click.Option]:
    return {
        name: each
        for each in command.params
        if isinstance(each, click.Option)
        for name in (*each.opts, *each.secondary_opts)
    }


def test_every_command_of_celery_is_there(theirs: list[dict[str, Any]], ours: dict[Path_, click.Command]) -> None:
    assert [path for path, _ in compared(theirs) if path not in ours] == []


def test_every_option_of_celery_is_there_or_there_is_a_reason(
    theirs: list[dict[str, Any]], ours: dict[Path_, click.Command]
) -> None:
    missing = {
        spelt(path, name)
        for path, each in compared(theirs)
        for option in each["options"]
        for name in option["names"]
        if name not in options_of(ours[path])
    }
    assert missing == set(MISSING)


def test_options_are_flags_where_they_are_flags_and_have_celerys_defaults(
    theirs: list[dict[str, Any]], ours: dict[Path_, click.Command]
) -> None:
    other = set()
    for path, each in compared(theirs):
        for option in each["options"]:
            found = options_of(ours[path]).get(option["names"][-1])
            if found is None:
                continue
            assert found.is_flag == option["flag"], spelt(path, option["names"][-1])
            plain = found.default if isinstance(found.default, str | int | float | bool) else None
            if plain != option["default"] and (plain or option["default"]):
                other.add(spelt(path, option["names"][-1]))
    assert other == set(OTHER_DEFAULTS)


def test_arguments_come_in_celerys_order(theirs: list[dict[str, Any]], ours: dict[Path_, click.Command]) -> None:
    for path, each in compared(theirs):
        mine = [found for found in ours[path].params if isinstance(found, click.Argument)]
        # Ours may take more behind Celery's, which accepts whatever follows there.
        assert len(mine) >= len(each["arguments"]), path
        for wanted, found in zip(each["arguments"], mine, strict=False):
            assert (found.name or "").strip("_") in (wanted, "name") or found.human_readable_name == wanted.upper(), (
                path
            )


# -- multi, whose options are not click's ------------------------------------------------------------------------------


def multi(module: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, "multi", *words],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["names", "3"],
        ["names", "a", "b", "c@elsewhere"],
        ["names", "2", "--range-prefix=w"],
        ["names", "a", "b", "--prefix=pre", "--suffix=there"],
        ["names", "a", "b", "--hostname=worker.example"],
        ["expand", "%n|%h|%d", "2", "--hostname=worker.example"],
        ["expand", "run/%n%I.log", "a", "b"],
    ],
    ids=" ".join,
)
def test_multi_names_and_expands_as_celery_does(words: list[str], tmp_path: Path) -> None:
    theirs = multi("celery", *words, cwd=tmp_path)
    ours = multi("umbel", *words, cwd=tmp_path)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)


@pytest.mark.parametrize(
    "words",
    [
        ["3", "-A", "proj", "-c", "4"],
        ["3", "-A", "proj", "-c", "3", "-c:1", "10", "-l", "info"],
        ["5", "-A", "proj", "-Q:1-3", "images,video", "-Q:4,5", "data", "-E"],
        ["mail", "video", "-A", "proj", "-c:mail", "2"],
        ["1", "-A", "proj", "--time-limit=30", "--", "-X", "nothing"],
    ],
    ids=" ".join,
)
def test_multi_starts_workers_with_the_words_that_celery_gives_them(words: list[str], tmp_path: Path) -> None:
    # Without these Celery writes below /var, and we where we are.
    files = ["--pidfile=run/%n.pid", "--logfile=log/%n%I.log"]

    def commands(module: str) -> list[list[str]]:
        done = multi(module, "show", "--hostname=h", *files, *words, cwd=tmp_path)
        found = []
        for line in done.stdout.splitlines():
            given = line.replace("'", "").split()
            assert given.count("worker") == 1 and "--detach" in given
            # '-A proj' stands before 'worker' there and behind it here, and each understands its own.
            options = " ".join(word for word in given[given.index("-m") + 2 :] if word not in ("worker", "--detach"))
            options = options.replace(" -- ", " ").replace("--app=", "-A ")
            # Another Python would be another environment.
            split = (" " + options).split(" -")[1:]
            found.append(sorted(word.strip() for word in split if not word.startswith("-executable")))
        return found

    assert commands("umbel") == commands("celery")
    assert commands("umbel")


@pytest.mark.parametrize("words", [["help"], []], ids=" ".join)
def test_multi_helps(words: list[str], tmp_path: Path) -> None:
    done = multi("umbel", *words, cwd=tmp_path)
    assert done.returncode == 0 and "umbel multi start" in done.stdout
    for name in ("start", "stop", "stopwait", "restart", "kill", "names", "show", "expand", "get"):
        assert name in done.stdout


def test_multi_stops_what_does_not_run_as_celery_does(tmp_path: Path) -> None:
    for command in ("stop", "stopwait", "stop_verify", "kill", "restart"):
        if command != "restart":
            done = multi("umbel", command, "2", cwd=tmp_path)
            assert done.returncode == 0 and done.stdout.count("DOWN") == 2
    assert multi("umbel", "get", "nobody", "2", cwd=tmp_path).returncode == 1
    assert multi("umbel", "strat", "2", cwd=tmp_path).returncode == 2


def test_a_log_is_read_from_standard_input() -> None:
    log = "[2026-11-21 18:00:00,000: INFO/MainProcess] Task add[1] received\n"
    done = subprocess.run(
        [sys.executable, "-m", "umbel", "logtool", "stats"],
        input=log, env=environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "Task total: 1" in done.stdout
