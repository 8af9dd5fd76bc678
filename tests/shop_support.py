"""Plays the shop of ``programs/shop`` with one client and its workers, and says what came of it, without ids."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import redis

from support import environment, eventually, worker
from umbel.celery import switch_path

PROJECT: Final = Path(__file__).resolve().parent / "interop" / "programs" / "shop"
#: The workers: name, and its options.
WORKERS: Final = {
    "front@shop": ("-Q", "celery,orders", "-c", "3"),
    "back@shop": ("-Q", "mail,slow", "-c", "2"),
}
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

Line = dict[str, Any]


def play(
    folder: Path, broker: str, results: str, *, client: str, workers: str, settings: str = "module"
) -> dict[str, Any]:
    """Run all scenarios; ``client`` and ``workers`` are "celery" or "umbel", and the shop is the same."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flags").mkdir()
    env = environment(
        SHOP_BROKER=broker,
        SHOP_RESULTS=results,
        SHOP_SETTINGS=settings,
        SHOP_JOURNAL=str(folder / "journal"),
        SHOP_LOG=str(folder / "log"),
        SHOP_FLAGS=str(folder / "flags"),
        PYTHONDONTWRITEBYTECODE="1",
        C_FORCE_ROOT="1",
    )
    ours = {**env, "PYTHONPATH": switch_path()}
    with ExitStack() as stack:
        where = ours if workers == "umbel" else env
        for name, options in WORKERS.items():
            stack.enter_context(worker("shop", "-n", name, "-l", "info", *options, cwd=PROJECT, env=where, celery=True))
        found = ask(ours if client == "umbel" else env)
        settle(folder / "journal")
    with redis.Redis.from_url(results) as store:
        stored = {
            key.decode().removeprefix("celery-task-meta-"): json.loads(store.get(key) or b"null")
            for key in store.scan_iter("celery-task-meta-*")
        }
        lasting = {store.ttl(f"celery-task-meta-{id}") for id in stored}
    return Account(folder, found, stored, lasting).told()


def ask(env: dict[str, str]) -> Any:
    """Run the client and return what it saw."""
    done = subprocess.run(
        [sys.executable, "client.py"], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def settle(journal: Path) -> None:
    """Wait until nothing more happens."""
    before = [-1, -1]

    def quiet() -> bool:
        time.sleep(0.5)
        before.append(journal.stat().st_size)
        return before[-1] == before[-2] == before[-3]

    eventually(quiet)


def lines(path: Path) -> Iterator[Line]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)


class Account:
    """What was seen in one run, told so that two runs can be compared."""

    def __init__(self, folder: Path, found: Any, stored: dict[str, Any], lasting: set[int]) -> None:
        self.journal = list(lines(folder / "journal"))
        self.log = list(lines(folder / "log"))
        self.found, self.stored, self.lasting = found, stored, lasting
        self.labels = self._labels()

    def told(self) -> dict[str, Any]:
        """Return the account: by scenario what the client saw, by task what happened to it."""
        return {
            "client": self.found and {name: self.clean(value) for name, value in self.found.items()},
            "published": self.by_task(("before_task_publish", "after_task_publish"), self.journal),
            "heard": self.by_task(
                ("task_received", "task_revoked", "task_unknown", "task_internal_error"), self.journal
            ),
            "ran": self.by_task(None, self.journal),
            "stored": self.documents(),
            "logged": self.logged(),
            "nodes": self.nodes(),
            "lasting": all(3000 < each <= 3600 for each in self.lasting),
        }

    def _labels(self) -> dict[str, str]:
        """Return a name for each id: the scenario of its root, the task and its arguments."""
        roots, labels = {}, {}
        for line in self.journal:
            if line["scenario"] and line.get("root_id"):
                roots[line["root_id"]] = roots[line["id"]] = line["scenario"]
        for line in self.journal:
            if line["what"] == "before_task_publish" and line["id"] not in labels:
                scenario = roots.get(line["root_id"], "?")
                args = _UUID.sub("ID", json.dumps([line["args"], line["kwargs"]]))
                labels[line["id"]] = self.shape(f"{scenario}/{line['name']}{args}")
        return labels

    def shape(self, text: str) -> str:
        """Return the text without what differs from run to run."""
        text = _UUID.sub("<id>", text)
        text = re.sub(r"\d\d\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?([+]\d\d:\d\d)?", "<time>", text)
        text = re.sub(r"\b(celery|kombu|billiard|umbel)\.exceptions\.", "", text)
        text = re.sub(r"gen\d+@[^\"]*", "gen<pid>@<host>", text)
        text = re.sub(r"0x[0-9a-f]+", "0x", text)
        text = re.sub(r"/\S*/flags/", "/flags/", text)
        text = re.sub(r"\d+\.\d+(e-\d+)?s", "<s>", text)
        return re.sub(r"in \d+(\.\d+)?s", "in <s>", text)

    def clean(self, value: Any) -> Any:
        """Return the value with names for ids, and without times and places."""
        if isinstance(value, dict) and "unordered" in value:
            return ordered(self.clean(value["unordered"]))
        if isinstance(value, dict):
            return {self.clean(key): self.clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.clean(item) for item in value]
        if isinstance(value, str):
            return self.shape(_UUID.sub(lambda match: f"<{self.labels.get(match[0], 'id')}>", value))
        return value

    def by_task(self, kinds: Iterable[str] | None, journal: list[Line]) -> dict[str, Any]:
        """Return for each task, and each of its attempts, what happened in order."""
        found: dict[str, dict[tuple[str, int], list[Line]]] = defaultdict(lambda: defaultdict(list))
        for line in journal:
            here = line["what"] in kinds if kinds else line["what"] not in PUBLISHED and line["what"] not in HEARD
            if "id" not in line or not here:
                continue
            label = self.labels.get(line["id"]) or self.shape(str(line["name"]))
            kept = {key: value for key, value in line.items() if key not in ("scenario", "pid")}
            told = found[label][line["id"], line["retries"] or 0]
            if line["what"] != "task_received" or not told or told[-1]["what"] != "task_received":
                told.append(self.clean(kept))
        return {label: ordered(attempts.values()) for label, attempts in found.items()}

    def documents(self) -> dict[str, Any]:
        found = defaultdict(list)
        for id, document in self.stored.items():
            if isinstance(document.get("traceback"), str):
                document["traceback"] = document["traceback"].strip().splitlines()[-1]
            label = self.labels.get(id) or self.shape(id)
            if label == "<id>":  # of a task that never ran
                label = f"never/{self.clean(json.dumps(document['result']))}"
            found[label].append(self.clean(document))
        return {label: ordered(each) for label, each in found.items()}

    def logged(self) -> dict[str, Any]:
        """Return the records about each task; processes write at the same time, so they are in no order."""
        found = defaultdict(list)
        received: set[tuple[str, str]] = set()
        for line in self.log:
            ids = _UUID.findall(line["message"]) or ([line["id"]] if line["id"] else [])
            # What a process gives back, and what waits for its rate limit, is received again by another.
            if not ids or (ids[0], line["message"]) in received:
                continue
            if line["message"].endswith("received"):
                received.add((ids[0], line["message"]))
            found[self.labels.get(ids[0], "?")].append(self.clean({**line, "id": line["id"] is not None}))
        return {label: sorted(each, key=lambda line: (line["message"], line["level"])) for label, each in found.items()}

    def nodes(self) -> dict[str, Any]:
        """Return how often what was said of the workers and not of tasks."""
        found: dict[str, int] = defaultdict(int)
        for line in self.journal:
            if "id" not in line:
                found[f"{line['what']} {line['sender']} {line['keys']}"] += 1
        return dict(sorted(found.items()))


PUBLISHED: Final = ("before_task_publish", "after_task_publish")
HEARD: Final = ("task_received", "task_revoked", "task_unknown", "task_internal_error")


def ordered(values: Iterable[Any]) -> list[Any]:
    """Return them by attempt, and then by what they are."""

    def key(value: Any) -> tuple[int, str]:
        first = value[0] if isinstance(value, list) and value else value
        return first.get("retries") or 0 if isinstance(first, dict) else 0, json.dumps(rootless(value), sort_keys=True)

    return sorted(values, key=key)


def rootless(value: Any) -> Any:
    """Return it without the ids of roots, which differ from run to run where it is the last member that counts."""
    if isinstance(value, dict):
        return {name: rootless(each) for name, each in value.items() if name != "root_id"}
    return [rootless(each) for each in value] if isinstance(value, list) else value


def differences(left: Any, right: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield where the two differ: the path, and what each has there."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted({*left, *right}):
            yield from differences(left.get(key, "<none>"), right.get(key, "<none>"), f"{path} > {key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for at, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from differences(one, other, f"{path} > {at}")
    elif left != right or type(left) is not type(right):
        yield path.removeprefix(" > "), left, right
