"""A shop that was written for Celery, run by Celery and under the alias: what it sees must be the same.

One client plays the scenarios of ``programs/shop/client.py`` against two workers. Everything that the shop could see is
compared with what it sees between Celery and Celery: results, states, errors, children, the stored documents, the calls
of hooks and signals in their order, the requests, where each task ran, the log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest

from shop_support import differences, play
from support import environment, run, worker
from umbel.celery import switch_path
from umbel.testing.servers import RabbitMQServer, RedisServer

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("celery") is None, reason="Celery is not installed here; make test runs this"),
]

PROGRAMS: Final = Path(__file__).resolve().parent / "programs"


@dataclass(frozen=True)
class Difference:
    """Where something else is seen, if Umbel is the ``side`` that makes it, and why that is better or is harmless."""

    side: str  # "client", "worker", or "any" of them
    where: str
    why: str
    on: str = ""  # one kind of broker alone


DIFFERENT: Final = (
    # -- what the client sees
    Difference(
        "client",
        r"client > failures > 2 > (info|outcome) > (args > 0|text)",
        "an exception is rebuilt from its arguments; Celery calls its constructor with them a second time",
    ),
    Difference("client", r"client > refused > [01] > (args > 0|text)", "the words of Python's own signature check"),
    Difference(
        "client",
        r"client > refused > 3|\w+ > refused/orders.tasks.price.*",
        "a soft limit above the hard one is refused; and nothing is announced that cannot be encoded",
    ),
    Difference("client", r"client > written_down > repr > \d", "a canvas shows the full names of its tasks"),
    # -- more is said
    Difference(
        "worker",
        r"(client > failing_chords > [02] > extended|stored > never/.*ChordError.* > 0) > "
        r"(args|kwargs|name|queue|retries|worker)",
        "the body of a chord that failed says which task it was to be",
    ),
    Difference(
        "any",  # Celery's last word on it may come later than the client's look
        r"(client > revoked > 1 > extended|stored > revoked/orders.tasks.price.* > \d) > "
        r"(args|kwargs|name|queue|retries|worker)",
        "a task that was revoked before it ran says which task it was",
    ),
    Difference(
        "worker",
        r".*returned_types.*(text|args > 0|args|traceback|traceback > 0|last|exc_message > 0|message)",
        "the error says where in the result the value is and what to do",
    ),
    Difference(
        "any",
        r".*time_limits.*(text|args > 0|args|traceback|traceback > 0|last|exc_message|exc_message > 0|message)",
        "the error says which limit was exceeded",
    ),
    # -- retries
    Difference(
        "worker",
        r"client > retries > 3 > children|stored > retries/.*returned.* > 0 > children",
        "a retry is no child of itself, so that walking the children ends",
    ),
    Difference(
        "worker",
        r"(ran > .* > request|published > .* > headers|stored > .*) > parent_id",
        "the parent of a retry is the task's parent and not the task itself",
    ),
    Difference(
        "any",
        r"\w+ > (replaced|chords|failing_chords)/.* > parent_id",
        "the parent of a chord's body is the member that happened to end last",
    ),
    Difference("worker", r"ran > .* > 3 > exc", "on_retry without an exception gets the Retry and not None"),
    # -- requests
    Difference("worker", r"ran > .* > request > utc", "the request says what the message said"),
    Difference("worker", r"ran > .* > request > (chain|chord > options > (chain|priority))", "no empty chains"),
    Difference(
        "any",
        r"((ran > .* > request|published > .* > headers) > (group|group_index)|stored > .* > group_id)",
        "an errback is no member of the group that the failed task was in",
    ),
    Difference(
        "worker", r"ran > .* > einfo", "after_return gets the traceback of a failure, as its documentation says"
    ),
    Difference(
        "any",
        r"(ran > .* > request|published > .* > headers) > ignore_result",
        "send_task of a task that is known says what the task says",
    ),
    Difference(
        "client",
        r"ran > [^/]* > (request > (argsrepr|kwargsrepr|lang|task|headers)|einfo)",
        "an eager request has all the names too, and after_return the traceback",
    ),
    Difference("any", r"ran > .* > request > chord > .*root_id", "frozen signatures know their root"),
    Difference(
        "any",
        r"\w+ > chords/.*root_id",
        "the root of a chord's body is that of the member that ended last, with Celery too, and which that is differs",
    ),
    # -- signals
    Difference(
        "any",
        r"published > .* > properties > \w+|published > .* > headers > compression",
        "before_task_publish sees the whole message; Celery adds to it afterwards",
    ),
    Difference("worker", r"heard > .* > sender", "the sender is the name of the node; there is no consumer object"),
    Difference("worker", r"nodes > .*", "a process that was killed says nothing"),
    Difference("worker", r"ran > revoked/.* > 0 > 3 > (retval|state)", "task_postrun says that a task was terminated"),
    Difference(
        "worker",
        r"ran > time_limits/orders.tasks.stuck.* > 0",
        "the hooks of a task that was stopped are those of any failure, once each",
    ),
    Difference(
        "any",
        r"\w+ > expired.*",
        "a task that expired is REVOKED; with Celery the broker drops the message, and the result is PENDING for ever",
        on="rabbitmq",
    ),
    Difference("any", r"ran > .* > delivery_info > priority", "no priority is priority 0", on="rabbitmq"),
    Difference(
        "any",
        r"(client|ran|stored) > later.*(queue|eta|expires|headers|exchange|routing_key)",
        "what is due later waits in the broker, as with Celery's native delays, and a Celery worker sees its way",
        on="rabbitmq",
    ),
    # -- the log
    Difference("worker", r"logged > \? > \d > (logger|error|id)", "an error of a chord has no traceback of ours"),
    Difference("worker", r"logged > predicates/.*reject.* > \d > error", "a rejection has no traceback of ours"),
    Difference(
        "worker", r"logged > time_limits/orders.tasks.stuck.*", "how a task ends that was stopped is logged too"
    ),
    Difference("worker", r"logged > revoked/.*", "every worker logs what is revoked; signals have names"),
    Difference(
        "any",
        r"heard > (expired|revoked)/.*",
        "what is logged as received is also told of as received; Celery says so of some that it discards",
    ),
)


def unexplained(
    found: Mapping[str, Any], base: Mapping[str, Any], client: str, workers: str, kind: str
) -> tuple[dict[str, Any], list[Difference]]:
    """Return where the two differ without a reason, and the reasons that explain nothing."""
    sides = {"client": client == "umbel", "worker": workers == "umbel", "any": True}
    rows = {row: re.compile(row.where) for row in DIFFERENT if sides[row.side] and row.on in ("", kind)}
    left, used = {}, set()
    for path, theirs, ours in differences(base, found):
        reasons = [row for row, where in rows.items() if where.fullmatch(path)]
        used.update(reasons)
        if not reasons:
            left[path] = theirs, ours
    return left, [row for row in rows if row not in used and row.side != "any"]


# -- the shop --------------------------------------------------------------------------------------------------------

#: The settings are a module on one broker, and a class with the names of before Celery 4 on the other.
SETTINGS: Final = {"redis": "module", "rabbitmq": "class"}
PAIRS: Final = [("umbel", "umbel"), ("celery", "umbel"), ("umbel", "celery")]


class Stage:
    """One kind of broker, with what Celery's client sees of Celery's workers on it."""

    def __init__(self, kind: str, url: str, results: RedisServer, clear: Callable[[], None]) -> None:
        self.kind, self._url, self._results, self._clear = kind, url, results, clear
        self.base: dict[str, Any] = {}

    def play(self, folder: Path, client: str, workers: str) -> dict[str, Any]:
        """Run all scenarios on empty servers."""
        import redis

        with redis.Redis.from_url(self._results.url) as store:
            store.flushall()
        self._clear()
        settings = SETTINGS[self.kind]
        return play(folder, self._url, self._results.url, client=client, workers=workers, settings=settings)


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def stage(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    if request.param == "redis":
        made = Stage("redis", redis_server.url, redis_server, lambda: None)
    else:
        rabbit: RabbitMQServer = request.getfixturevalue("rabbitmq_server")
        made = Stage("rabbitmq", rabbit.url, redis_server, rabbit.clear)
    made.base = made.play(tmp_path_factory.mktemp("base") / "run", "celery", "celery")
    yield made


def test_the_base_is_whole(stage: Stage) -> None:
    broken = {name: seen for name, seen in stage.base["client"].items() if isinstance(seen, dict) and "broke" in seen}
    assert not broken
    assert len(stage.base["client"]) >= 28
    assert len({label.split("/")[-1].split("[")[0] for label in stage.base["ran"]}) >= 20
    assert stage.base["lasting"]


@pytest.mark.parametrize(("client", "workers"), PAIRS, ids=lambda side: side)
def test_it_sees_what_it_sees_on_celery(stage: Stage, client: str, workers: str, tmp_path: Path) -> None:
    found = stage.play(tmp_path / "run", client, workers)
    left, idle = unexplained(found, stage.base, client, workers, stage.kind)
    assert not left, "\n".join(f"{path}\n    {theirs!r}\n    {ours!r}" for path, (theirs, ours) in left.items())
    assert client != workers or idle == []


# -- with Flask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["shared", "context"])
def test_a_flask_project(pattern: str, redis_url: str) -> None:
    """An app factory with FlaskTask and shared tasks, and the older make_celery with ContextTask."""
    pytest.importorskip("flask")
    seen = {}
    for library in ("celery", "umbel"):
        path = {"PYTHONPATH": switch_path()} if library == "umbel" else {}
        env = environment(
            SHOP_URL=redis_url, SHOP_PATTERN=pattern, C_FORCE_ROOT="1", PYTHONDONTWRITEBYTECODE="1", **path
        )
        home = PROGRAMS / "flask_shop"
        with worker("make_celery", "-l", "info", "-c", "1", cwd=home, env=env, celery=True) as running:
            seen[library] = json.loads(run("import client", cwd=home, env=env))
            running.expect("order 7 for Rome")
    assert seen["umbel"] == seen["celery"]
    assert seen["umbel"]["added"] == ["Rome", 5, False]
