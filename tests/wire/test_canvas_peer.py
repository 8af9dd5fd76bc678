"""A table of canvases, executed by the real Celery and by us, and by both together, on one Redis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from canvas_cases import CASES
from canvas_support import play, write
from support import environment, run, worker

#: Where the real Celery does something else: what we do, and why that is better.
DIFFERENT: Final[dict[str, tuple[Any, str]]] = {
    "failure then group": (
        {"outcome": ["raises", "ValueError", ["boom", "7"]], "log": []},
        "the tasks of a group that will never run are marked as failed; Celery leaves them PENDING for ever",
    ),
    "chain with a group in a header fails": (
        {"outcome": ["raises", "ValueError", ["boom", "7"]], "log": []},
        "each task of the group counts as a failed member; Celery counts one for all, and the chord hangs",
    ),
    "chord of chords, one fails": (
        {
            "outcome": ["raises", "ChordError", ["Dependency ID raised ValueError('boom', 7)"]],
            "log": [["new", "ChordError"]],
        },
        "a chord that fails inside a header counts as a failed member, so the outer one ends and calls its errback; "
        "under Celery the outer one never ends",
    ),
    "replace with nothing": (
        {
            "outcome": [
                "raises",
                "ImproperlyConfigured",
                ["a task cannot be replaced with an empty chain; return a value instead"],
            ],
            "log": [],
        },
        "the text says what to do",
    ),
    "add to no chord": (
        {
            "outcome": [
                "raises",
                "ValueError",
                ["task extend is not a member of a chord, so nothing can be added to one"],
            ],
            "log": [],
        },
        "the text says which task",
    ),
}
#: What does not end where a Celery worker has a part in it.
UNENDING: Final = ("failure then group", "chain with a group in a header fails", "chord of chords, one fails")
UNENDING_FOR_US: Final = (*UNENDING, "chord in a header fails")
#: A Celery worker sends the next attempt, then stores RETRY; the end of that attempt may have been stored in between.
RACING: Final = ("retried with an errback",)
#: Texts of errors that are raised in the worker.
WORDED: Final = ("replace with nothing", "add to no chord")


def without(names: tuple[str, ...]) -> dict[str, str]:
    return {name: code for name, code in CASES.items() if name not in names}


def differences(left: dict[str, Any], right: dict[str, Any], but: tuple[str, ...] = ()) -> dict[str, Any]:
    return {name: (left[name], right[name]) for name in left if name not in but and left[name] != right[name]}


@pytest.fixture(scope="module")
def celerys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What becomes of the table between Celery and Celery."""
    from umbel.testing.servers import RedisServer

    with RedisServer() as server:
        return play(
            tmp_path_factory.mktemp("celerys"), server.url, client="celery", workers=["celery"], cases=without(UNENDING)
        )


def test_the_table_is_large() -> None:
    assert len(CASES) >= 150


def test_it_ends_as_with_celery(tmp_path: Path, redis_url: str, celerys: dict[str, Any]) -> None:
    ours = play(tmp_path, redis_url)
    assert differences(celerys, ours, tuple(DIFFERENT)) == {}
    assert {name: ours[name] for name in DIFFERENT} == {name: ending for name, (ending, _) in DIFFERENT.items()}


def test_celerys_client_and_our_worker(tmp_path: Path, redis_url: str, celerys: dict[str, Any]) -> None:
    mixed = play(tmp_path, redis_url, client="celery")
    assert differences(celerys, mixed, tuple(DIFFERENT)) == {}
    assert {name: mixed[name] for name in DIFFERENT} == {name: ending for name, (ending, _) in DIFFERENT.items()}


def test_our_client_and_celerys_worker(tmp_path: Path, redis_url: str, celerys: dict[str, Any]) -> None:
    mixed = play(tmp_path, redis_url, workers=["celery"], cases=without(UNENDING_FOR_US))
    assert differences(mixed, celerys) == {}


@pytest.mark.parametrize("client", ["celery", "umbel"])
def test_both_workers_on_one_queue(client: str, tmp_path: Path, redis_url: str, celerys: dict[str, Any]) -> None:
    cases = without((*UNENDING_FOR_US, *RACING))
    mixed = play(tmp_path, redis_url, client=client, workers=["umbel", "celery"], cases=cases)
    assert differences(mixed, celerys, WORDED) == {}


def test_eager_calls_end_as_with_celery(tmp_path: Path, redis_url: str) -> None:
    # Nothing is stored that could be looked up by an id.
    looked_up = ("frozen chain result", "chord frozen, its result", "group saved")
    cases = {name: code for name, code in without(looked_up).items() if "app.AsyncResult(" not in code}
    eager = {"workers": [], "conf": "task_always_eager=True", "settle": 0, "cases": cases}
    theirs, ours = (play(tmp_path / module, redis_url, client=module, **eager) for module in ("celery", "umbel"))
    # Celery's replace() cannot be run eagerly: it waits for a result inside a task, which is refused.
    replacing = tuple(name for name, code in CASES.items() if "replace_" in code)
    assert differences(theirs, ours, (*replacing, *WORDED)) == {}
    assert ours["replace, callbacks"] == {"outcome": ["value", 101], "log": [["note", 101]]}
    assert ours["replace in a header"] == {"outcome": ["value", [101, 204, 7]], "log": []}


CROSSING = """
import json
from peer_tasks import *

def on(sig, number):
    return sig.set(queue=("ours", "theirs")[number % 2])

found = []
for turn in (0, 1):
    steps = [on(add.s(1), turn + n) for n in range(8)]
    found.append(chain(*steps).delay(0))
    found.append(chord([on(add.s(n), turn + n) for n in range(10)], on(ident.s(), turn)).delay())
    nested = chord([on(add.s(n), turn + n) for n in range(4)], on(xsum.s(), turn))
    found.append(chord([nested, on(add.s(7), turn), on(add.s(8), turn + 1)], on(ident.s(), turn + 1)).delay())
    found.append((on(add.s(1), turn) | group(on(add.s(n), n) for n in range(4)) | on(ident.s(), turn + 1)).delay())
    found.append(chord([on(replace_group.s(1), turn), on(add.s(2), turn + 1)], on(ident.s(), turn)).delay())
    found.append(chord([on(extend.s(1), turn), on(add.s(2), turn + 1)], on(sort.s(), turn)).delay())
    found.append(chord([on(fail.s(), turn), on(add.s(2), turn + 1)], on(ident.s(), turn)).delay())
def value(result):
    try:
        return result.get(timeout=30)
    except ValueError as error:
        return list(error.args)
print(json.dumps([value(result) for result in found]))
"""


@pytest.mark.parametrize("client", ["celery", "umbel"])
def test_chains_and_chords_cross_from_worker_to_worker(client: str, tmp_path: Path, redis_url: str) -> None:
    env = environment(URL=redis_url, LOG=str(tmp_path / "log"), C_FORCE_ROOT="1")
    homes = {module: write(tmp_path / module, module) for module in ("celery", "umbel")}
    queues = {"umbel": "ours,celery", "celery": "theirs,celery"}
    with (
        worker("peer_tasks", "-c", "2", "-l", "info", "-Q", queues["umbel"], cwd=homes["umbel"], env=env),
        worker(
            "peer_tasks", "-c", "2", "-l", "info", "-Q", queues["celery"], cwd=homes["celery"], env=env, celery=True
        ),
    ):
        said = json.loads(run(CROSSING, cwd=homes[client], env=env, timeout=60).splitlines()[-1])
    expected = [8, list(range(10)), [6, 7, 8], [1, 2, 3, 4], [[1, 2, 3], 2], [1, 2, 1001], ["boom", 7]]
    assert said == expected * 2


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("client", "workers"), [("umbel", ["umbel"]), ("celery", ["umbel", "celery"]), ("umbel", ["celery"])], ids=str
)
def test_it_ends_alike_with_messages_on_rabbitmq(
    client: str, workers: list[str], tmp_path: Path, rabbitmq_url: str, redis_url: str, celerys: dict[str, Any]
) -> None:
    among_celerys = "celery" in workers
    cases = without(UNENDING_FOR_US) if among_celerys else CASES
    ended = play(tmp_path, rabbitmq_url, client=client, workers=workers, cases=cases, env={"RESULTS": redis_url})
    assert differences(ended, celerys, (*WORDED, *(() if among_celerys else DIFFERENT))) == {}


UNORDERED: Final = {
    "chord": "chord([add.s(n, 0) for n in range(12)], sort.s())()",
    "chord with groups": "chord([group(add.s(n, 0) for n in range(3)), add.s(7, 0)], sort.s())()",
    "chord of chords": "chord([chord([add.s(n, 0) for n in range(4)], xsum.s()) for _ in range(3)], sort.s())()",
    "a member fails": "chord([add.s(1, 1), fail.s(), add.s(2, 2)], xsum.s().on_error(eb_old.s(T)))()",
    "added": "chord([extend.s(1), add.s(2, 2)], sort.s())()",
}


@pytest.mark.parametrize("workers", [["umbel"], ["celery"], ["umbel", "celery"]], ids=str)
def test_values_in_the_order_in_which_they_come(workers: list[str], tmp_path: Path, redis_url: str) -> None:
    """``result_chord_ordered=False``: the parts are in a list, and both kinds of workers find it."""
    conf = 'result_backend_transport_options={"result_chord_ordered": False}'
    ended = play(tmp_path, redis_url, workers=workers, cases=UNORDERED, conf=conf)
    log = ended["a member fails"].pop("log")
    assert [line[-1] for line in log] == ["old"]
    assert ended == {
        "chord": {"outcome": ["value", list(range(12))], "log": []},
        "chord with groups": {"outcome": ["value", [0, 1, 2, 7]], "log": []},
        "chord of chords": {"outcome": ["value", [6, 6, 6]], "log": []},
        "a member fails": {"outcome": ["raises", "ValueError", ["boom", "7"]]},
        "added": {"outcome": ["value", [1, 4, 1001]], "log": []},
    }
