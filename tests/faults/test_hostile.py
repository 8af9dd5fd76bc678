"""Somebody who can write to the queue fills it with what is no task: good tasks run, and the worker stays small."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fault_support import FaultSite, eventually, tree
from hostile import ESCAPES
from umbel.interfaces import Outgoing, Place
from umbel.message import Message

pytestmark = pytest.mark.faults

HOSTILE, GOOD = 20_000, 500
KEPT = 10_000  # letters of a queue
GROWTH = 64 << 10  # KiB
JSON = "application/json"


def deep(brackets: bytes) -> bytes:
    return brackets * 2000


# Each makes (body, content type, headers beside name and id) of a message that no worker may run.
MAKERS: list[Callable[[random.Random], tuple[bytes, str, dict[str, Any]]]] = [
    lambda chance: (chance.randbytes(chance.randint(0, 2000)), JSON, {}),
    lambda chance: (chance.randbytes(100), "application/x-python-serialize", {}),
    lambda chance: (b"cos\nsystem\n(S'true'\ntR.", "application/x-python-serialize", {}),
    lambda chance: (b"!!python/object/apply:os.abort []", "application/x-yaml", {}),
    lambda chance: (chance.randbytes(20), "application/x-unknown" + ESCAPES, {}),
    lambda chance: (deep(b"["), JSON, {}),
    lambda chance: (deep(b'{"a":'), JSON, {}),
    lambda chance: (b"[[" + b"9" * 5000 + b"], {}, {}]", JSON, {"retries": "many"}),
    lambda chance: (b"[[1], {}, {}]", JSON, {"id": 7}),
    lambda chance: (b"[[1], {}, {}]", JSON, {"id": "x" * 1000}),
    lambda chance: (b"[[1], {}, {}]", JSON, {"id": ESCAPES}),
    lambda chance: (b"[[1], {}, {}]", JSON, {"eta": ESCAPES}),
    lambda chance: (b"[[1], {}, {}]", JSON, {"timelimit": {"a": 1}}),
    lambda chance: (b"[5, {}, {}]", JSON, {}),
    lambda chance: (b"[[1], {}]" * chance.randint(2, 5), JSON, {}),
    lambda chance: (b"[[1], {}, {\"chain\": \"nonsense\"}]", JSON, {}),
    lambda chance: (b"[[1], {}, {\"callbacks\": [{\"task\": 5}]}]", JSON, {}),
    lambda chance: (b"[[1, 2, 3, 4, 5], {\"z\": 1}, {}]", JSON, {}),
    lambda chance: (b"x" * 200_000, JSON, {}),
    lambda chance: (b"[[1], {}, {}]", JSON, {"compression": "application/x-bz2"}),
]  # fmt: skip


def raw_message(number: int, chance: random.Random) -> Outgoing:
    body, content_type, headers = MAKERS[number % len(MAKERS)](chance)
    if len(body) > 100_000 and number % 400 != 18:
        body = body[:1000]  # a few large ones are enough
    id = f"hostile-{number}"
    message = Message(
        body=body,
        content_type=content_type,
        headers={"lang": "py", "task": "plain", "id": id, **headers},
        properties={"correlation_id": id, "delivery_info": {"exchange": "", "routing_key": "celery"}},
    )
    return Outgoing(message=message, task_id=id, queue="celery", routing_key="celery")


@pytest.fixture(params=["sqlite", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultSite]:
    with FaultSite(tmp_path, request.getfixturevalue(f"{request.param}_url")).closing() as made:
        yield made


def resident(pid: int) -> int:
    """Return the KiB of the largest of the worker's processes."""
    found = []
    for each in tree(pid):
        text = Path(f"/proc/{each}/status").read_text()
        found.append(int(text.partition("\nVmRSS:")[2].split()[0]))
    return max(found)


def test_hostile_messages_between_good_ones(site: FaultSite, chance: random.Random, row: Any) -> None:
    """F37. None runs, each is kept with its reason as long as there is room, no process dies of it or grows."""
    worker = site.start("-c", "2", "-l", "critical")
    eventually(lambda: len(tree(worker.process.pid)) >= 4)
    first = [site.send("plain", number) for number in range(50)]
    for result in first:
        result.get(timeout=20)
    processes = set(tree(worker.process.pid))
    before = resident(worker.process.pid)
    good = []
    each = HOSTILE // GOOD
    largest = [before]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            largest.append(resident(worker.process.pid))

    watching = threading.Thread(target=watch)
    watching.start()
    started = time.monotonic()
    try:
        for number in range(GOOD):
            site.app.broker.publish([raw_message(number * each + at, chance) for at in range(each)])
            good.append(site.send("plain", number))
        for result in good:
            result.get(timeout=max(0.1, 50 - (time.monotonic() - started)))
        eventually(lambda: site.left().keys() <= {"dead"}, timeout=20)
    finally:
        done.set()
        watching.join(10)
    row.recovered = time.monotonic() - started
    row.load, row.faults = f"{GOOD} good tasks", f"{HOSTILE} hostile messages; {max(largest) - before} KiB more"
    row.lost = sum(result.result != number * 2 for number, result in enumerate(good))
    row.repeats, row.bound = site.duplicates(), 0
    row.check()
    assert {attempt.task_id for attempt in site.attempts()} == {result.id for result in first + good}
    assert set(tree(worker.process.pid)) == processes, "a process died of it"
    assert max(largest) - before < GROWTH
    kept = site.app.broker.size("celery", Place.DEAD)
    assert kept == min(HOSTILE, KEPT)
    letters = list(site.app.dead.list(limit=2000))
    assert len(letters) == 2000
    reasons = Counter(letter.reason for letter in letters)
    assert {"undecodable", "content_disallowed", "invalid_task", "wrong_signature"} == set(reasons), reasons
    for peeked in site.app.broker.peek("celery", place=Place.DEAD, limit=200):
        envelope = json.loads(peeked.raw)
        assert base64.b64decode(envelope["body"]) or envelope["headers"]
    site.app.broker.purge("celery", Place.DEAD)
    site.stop_all()
