"""What becomes of a message, of its result and of its errbacks: the table in docs/dead-letters.md, row by row."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from umbel import Umbel, signals
from umbel.dead import PARKED
from umbel.exceptions import (
    Ignore,
    Reject,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from umbel.interfaces import (
    Ack,
    Dead,
    Delay,
    Delivery,
    Execution,
    Requeue,
    Settlement,
    Verdict,
    VerdictKind,
)
from umbel.message import decode_call, decode_envelope, encode_envelope
from umbel.publishing import build
from umbel.testing import FakeClock
from umbel.worker.runner import TaskRunner

PAGE = Path(__file__).resolve().parents[2] / "docs" / "dead-letters.md"
OPTIONS: dict[str, tuple[Any, ...]] = {
    "acks_late": (True, False),
    "acks_on_failure": (True, False),
    "acks_on_timeout": (True, False),
    "dead_letter_exhausted": (False, True),
    "dead_letter_expired": (False, True),
}


@dataclass
class Row:
    """One line of the table."""

    cause: str
    options: dict[str, bool]
    ending: tuple[str, str, str]  # message, state, errbacks


def rows() -> list[Row]:
    found = []
    for line in PAGE.read_text().partition("\n## What ends how")[2].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 5 and cells[0] not in ("cause", "---"):
            pairs = [part.strip("` ").split("=") for part in cells[1].split(",") if part.strip()]
            found.append(Row(cells[0], {name: value == "True" for name, value in pairs}, tuple(cells[2:])))  # type: ignore[arg-type]
    return found


ROWS = rows()


@dataclass
class Bench:
    """An app with one task, and what its errbacks were told."""

    app: Umbel
    options: dict[str, Any]
    clock: FakeClock = field(default_factory=FakeClock)
    called: list[tuple[str, str]] = field(default_factory=list)

    def task(self, body: Callable[..., Any], **options: Any) -> None:
        self.app.task(name="job", shared=False, **self.options, **options)(body)

    def message(self, args: tuple[Any, ...] = (), **options: Any) -> Any:
        links = [{"task": "of_elsewhere", "args": [], "kwargs": {}, "options": {}}]
        if "tell" in self.app.tasks:
            links.append(self.app.tasks["tell"].s())
        return build(self.app, "job", args, {}, {"link_error": links, **options}).message

    def end(self, raw: bytes, verdict: Verdict | None = None, count: int = 1) -> Settlement:
        """Have a runner end a delivery of these bytes."""
        runner = TaskRunner(self.app, hostname="n@h", clock=self.clock)
        delivery = Delivery(tag="7", queue="celery", raw=raw, count=count, verdict=verdict)
        admitted = runner.admit(delivery, 0.0)
        if isinstance(admitted, Execution):
            return runner.run(admitted).settlement
        return admitted


@pytest.fixture
def made() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**options: Any) -> Bench:
        url = f"memory://{uuid.uuid4().hex}"
        app = Umbel("table", broker=url, backend=url, set_as_current=False)
        bench = Bench(app, options)

        @app.task(name="tell", shared=False)
        def tell(request: Any, exc: BaseException, traceback: str | None) -> None:
            bench.called.append((request.id, type(exc).__name__))

        benches.append(bench)
        return bench

    yield make
    for bench in benches:
        bench.app.close()


def raising(error: BaseException) -> Callable[..., Any]:
    def body() -> None:
        raise error

    return body


def body_that_retries() -> Callable[..., Any]:
    def body(self: Any) -> None:
        raise self.retry(countdown=1)

    return body


def of_body(body: Callable[..., Any], **options: Any) -> Callable[[Bench], Settlement]:
    def end(bench: Bench) -> Settlement:
        bench.task(body, **options)
        return bench.end(encode_envelope(bench.message()))

    return end


def of_message(**options: Any) -> Callable[[Bench], Settlement]:
    def end(bench: Bench) -> Settlement:
        bench.task(lambda: 1)
        given = {key: value(bench.clock) if callable(value) else value for key, value in options.items()}
        return bench.end(encode_envelope(bench.message(**given)))

    return end


def of_verdict(kind: VerdictKind) -> Callable[[Bench], Settlement]:
    def end(bench: Bench) -> Settlement:
        bench.task(raising(AssertionError("a message with a verdict must not run")))
        return bench.end(encode_envelope(bench.message()), Verdict(kind=kind, detail="as the test says"))

    return end


def of_change(**fields: Any) -> Callable[[Bench], Settlement]:
    def end(bench: Bench) -> Settlement:
        bench.task(lambda: 1)
        message = bench.message()
        for name, value in fields.items():
            setattr(message, name, value)
        return bench.end(encode_envelope(message))

    return end


def no_retry_left(bench: Bench) -> Settlement:
    bench.task(body_that_retries(), bind=True, max_retries=2)
    return bench.end(encode_envelope(bench.message(retries=2)))


def unknown(parked: int) -> Callable[[Bench], Settlement]:
    def end(bench: Bench) -> Settlement:
        message = bench.message()
        message.headers[PARKED] = parked
        return bench.end(encode_envelope(message))

    return end


CAUSES: dict[str, Callable[[Bench], Settlement]] = {
    "success": of_body(lambda: 1),
    "result cannot be encoded": of_body(lambda: [object()]),
    "failure": of_body(raising(ValueError("no"))),
    "soft time limit": of_body(raising(SoftTimeLimitExceeded())),
    "hard time limit, process lives": of_body(raising(TimeLimitExceeded(3))),
    "no retry left": no_retry_left,
    "wrong signature": of_body(lambda x: 1),
    "retry": of_body(body_that_retries(), bind=True),
    "ignore": of_body(raising(Ignore())),
    "reject": of_body(raising(Reject("not mine"))),
    "reject, requeue": of_body(raising(Reject("not now", requeue=True))),
    "terminated, process lives": of_body(raising(Terminated(15))),
    "expired": of_message(expires=lambda clock: clock.now() - timedelta(seconds=1)),
    "early": of_message(eta=lambda clock: clock.now() + timedelta(seconds=60)),
    "unknown task": unknown(0),
    "unknown task, waited enough": unknown(4),
    "no envelope": lambda bench: bench.end(b"\x00 no JSON"),
    "body cannot be read": of_change(body=b"{"),
    "content type refused": of_change(content_type="application/x-python-serialize"),
    "no task": of_change(headers={}, body=b"[]"),
    "process lost": of_verdict(VerdictKind.LOST),
    "hard time limit, process killed": of_verdict(VerdictKind.TIME_LIMIT),
    "terminated, process killed": of_verdict(VerdictKind.TERMINATED),
    "too many deliveries": of_verdict(VerdictKind.MAX_DELIVERIES),
}


def ending(bench: Bench, settlement: Settlement) -> tuple[str, str, str]:
    """Say in the words of the table what a settlement does."""
    how = settlement.how
    names = [decode_call(outgoing.message).task for outgoing in settlement.publish]
    sent = names.count("of_elsewhere")
    assert sent == len(bench.called), "the one errback was told and the other was not"
    message = {Ack: "ack", Requeue: "requeue", Delay: "delay"}.get(type(how)) or f"dead: {getattr(how, 'reason', how)}"
    state = settlement.result.state if settlement.result is not None else "none"
    if "job" in names and state != "RETRY":
        message += ", again later"
    return message, state, "yes" if sent else "no"


def test_the_table_has_every_cause_and_every_option() -> None:
    assert {row.cause for row in ROWS} == set(CAUSES)
    assert {name for row in ROWS for name in row.options} == set(OPTIONS)


@pytest.mark.parametrize("cause", list(CAUSES))
def test_it_ends_as_the_table_says(cause: str, made: Callable[..., Bench]) -> None:
    for values in itertools.product(*OPTIONS.values()):
        options = dict(zip(OPTIONS, values, strict=True))
        fitting = [row for row in ROWS if row.cause == cause and row.options.items() <= options.items()]
        bench = made(**options)
        assert ending(bench, CAUSES[cause](bench)) == fitting[-1].ending, options


# -- what the table has no column for ----------------------------------------------------------------------------


@pytest.mark.parametrize("acks_late", [True, False])
@pytest.mark.parametrize("on_lost", [None, "requeue", "retry", "fail"])
@pytest.mark.parametrize("reject", [True, False])
@pytest.mark.parametrize("retry", [True, False])
def test_what_must_not_run_twice_is_marked(
    acks_late: bool, on_lost: str | None, reject: bool, retry: bool, made: Callable[..., Bench]
) -> None:
    bench = made(acks_late=acks_late, reject_on_worker_lost=reject, retry_on_worker_lost=retry)
    bench.task(lambda: 1, **({"on_lost": on_lost} if on_lost else {}))
    runner = TaskRunner(bench.app, hostname="n@h")
    execution = runner.admit(Delivery(tag="7", queue="celery", raw=encode_envelope(bench.message())), 0.0)
    assert isinstance(execution, Execution)
    begin = runner.begin(execution)
    retries = on_lost == "retry" or (on_lost is None and retry)
    again = not retries and acks_late and (on_lost == "requeue" or (on_lost is None and reject))
    assert (begin is not None and begin.once) is not again
    settlement = runner.unfinished(execution)
    if again or retries:
        assert isinstance(settlement.how, Requeue) and settlement.result is None
    else:
        assert settlement.result is not None and settlement.result.state == "FAILURE"
        assert b"WorkerLostError" in settlement.result.payload


@pytest.mark.parametrize("how", [{"on_lost": "retry"}, {"retry_on_worker_lost": True}])
def test_a_loss_that_is_a_retry_is_one(how: dict[str, Any], made: Callable[..., Bench]) -> None:
    bench = made(**how, max_retries=2, default_retry_delay=40)
    bench.task(lambda x: x)
    message = bench.message((1,), priority=3)
    lost = Verdict(kind=VerdictKind.LOST, detail="its process died")
    told: list[Any] = []

    def note(sender: Any, request: Any, reason: Any, **_: Any) -> None:
        told.append((sender.name, request.id, type(reason.exc)))

    signals.task_retry.connect(note)
    try:
        for retries in (1, 2):
            before = bench.clock.now()
            settlement = bench.end(encode_envelope(message), lost)
            assert isinstance(settlement.how, Ack)
            assert settlement.result is not None and settlement.result.state == "RETRY"
            (again,) = settlement.publish
            assert again.not_before is not None and again.not_before >= before + timedelta(seconds=40)
            assert (again.task_id, again.queue, again.priority) == (message.headers["id"], "celery", 3)
            message = again.message
            call = decode_call(message, ["json"])
            assert (list(call.args), call.retries, len(call.errbacks or ())) == ([1], retries, 2)
        assert told == [("job", message.headers["id"], WorkerLostError)] * 2 and bench.called == []
        settlement = bench.end(encode_envelope(message), lost)
    finally:
        signals.task_retry.disconnect(note)
    assert isinstance(settlement.how, Ack)
    assert settlement.result is not None and settlement.result.state == "FAILURE"
    assert bench.called == [(message.headers["id"], "WorkerLostError")]


def test_the_setting_decides_for_tasks_that_do_not(made: Callable[..., Bench]) -> None:
    bench = made()
    bench.app.conf.task_on_lost = "fail"
    bench.task(lambda: 1)
    runner = TaskRunner(bench.app, hostname="n@h")
    execution = runner.admit(Delivery(tag="7", queue="celery", raw=encode_envelope(bench.message())), 0.0)
    assert isinstance(execution, Execution)
    begin = runner.begin(execution)
    assert begin is not None and begin.once


def test_an_unknown_task_waits_longer_and_longer_and_keeps_everything(made: Callable[..., Bench]) -> None:
    bench = made()
    bench.app.conf.task_unknown_backoff = (5, 30)
    message = bench.message((1, "ü"), priority=3, headers={"mine": 1})
    raw = encode_envelope(message)
    for number, pause in enumerate((5, 30), 1):
        settlement = bench.end(raw)
        (again,) = settlement.publish
        assert again.not_before == bench.clock.now() + timedelta(seconds=pause)
        assert (again.queue, again.priority, again.task_id) == ("celery", 3, message.headers["id"])
        raw = encode_envelope(again.message)
        read = decode_envelope(raw)
        assert read.headers == {**message.headers, PARKED: number}
        assert (read.body, read.properties["priority"]) == (message.body, 3)
    how = bench.end(raw).how
    assert isinstance(how, Dead) and how.reason == "unregistered" and "'job'" in how.detail


@pytest.mark.parametrize("parked", ["1", -1, True, 2.5, [1], 10**30])
def test_a_strange_count_of_pauses_ends_it(parked: Any, made: Callable[..., Bench]) -> None:
    bench = made()
    message = bench.message()
    message.headers[PARKED] = parked
    how = bench.end(encode_envelope(message)).how
    assert isinstance(how, Dead) and how.reason == "unregistered"


def test_none_does_not_wait(made: Callable[..., Bench]) -> None:
    bench = made()
    bench.app.conf.task_unknown_backoff = None
    how = bench.end(encode_envelope(bench.message())).how
    assert isinstance(how, Dead) and how.reason == "unregistered"


def test_a_dead_letter_has_the_traceback(made: Callable[..., Bench]) -> None:
    bench = made(acks_on_failure=False)
    bench.task(raising(ValueError("no\nnewline")))
    how = bench.end(encode_envelope(bench.message())).how
    assert isinstance(how, Dead)
    assert how.detail == "ValueError: no newline"
    assert "raise error" in how.traceback and "ValueError: no" in how.traceback


def test_what_a_message_says_can_be_stored(made: Callable[..., Bench]) -> None:
    bench = made(acks_on_failure=False)
    bench.task(lambda **names: 1 / 0)
    good = bench.message()
    bench.app.tasks["job"].run = lambda: 1
    for body in (b'[[], {"\\ud800": 1}, {}]', b'[["\\ud800"], {"a\\u0000": 1}, {}]'):
        good.body = body
        how = bench.end(encode_envelope(good)).how
        assert isinstance(how, Dead)
        assert (how.reason + how.detail + how.traceback).encode("utf-8")


@pytest.mark.parametrize(
    ("retries", "limit", "exhausted"), [(0, 3, False), (2, 3, False), (3, 3, True), (9, None, False), (0, 0, False)]
)
def test_what_counts_as_no_retry_left(
    retries: int, limit: int | None, exhausted: bool, made: Callable[..., Bench]
) -> None:
    bench = made(dead_letter_exhausted=True)
    bench.task(raising(ValueError("no")), max_retries=limit)
    how = bench.end(encode_envelope(bench.message(retries=retries))).how
    assert isinstance(how, Dead) is exhausted


def test_errbacks_that_fail_change_nothing(made: Callable[..., Bench]) -> None:
    bench = made()

    @bench.app.task(name="bad", shared=False)
    def bad(request: Any, exc: Any, traceback: Any) -> None:
        raise RuntimeError("mine")

    @bench.app.task(name="good", shared=False)
    async def good(request: Any, exc: Any, traceback: Any, *, more: str) -> None:
        bench.called.append((request.id, more))

    bench.task(raising(ValueError("no")))
    message = bench.message(link_error=[bad.s(), good.s(more="x")])
    settlement = bench.end(encode_envelope(message))
    assert (settlement.how, settlement.publish) == (Ack(), [])
    assert settlement.result is not None and settlement.result.state == "FAILURE"
    assert bench.called == [(message.headers["id"], "x")]


def test_an_errback_of_the_older_style_is_sent(made: Callable[..., Bench]) -> None:
    bench = made()

    @bench.app.task(name="old", shared=False)
    def old(task_id: str) -> None: ...

    @bench.app.task(name="bound", bind=True, shared=False)
    def bound(self: Any, task_id: str) -> None: ...

    @bench.app.task(name="again", bind=True, autoretry_for=(OSError,), shared=False)
    def again(self: Any, task_id: str, tag: str) -> None: ...

    bench.task(raising(ValueError("no")))
    message = bench.message(link_error=[old.s(), bound.si(9), again.s("x")])
    settlement = bench.end(encode_envelope(message))
    calls = [decode_call(outgoing.message) for outgoing in settlement.publish]
    failed = message.headers["id"]
    assert [(call.task, call.args) for call in calls] == [("old", [failed]), ("bound", [9]), ("again", [failed, "x"])]
    assert {call.headers["parent_id"] for call in calls} == {message.headers["id"]}


def test_the_task_is_told_of_its_verdict(made: Callable[..., Bench]) -> None:
    bench = made()
    told: list[Any] = []

    class Telling(bench.app.Task):  # type: ignore[name-defined,misc]
        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            told.append((type(exc).__name__, task_id, self.request.id))

    bench.task(raising(AssertionError), base=Telling)
    message = bench.message()
    verdict = Verdict(kind=VerdictKind.MAX_DELIVERIES, detail="five times")
    settlement = bench.end(encode_envelope(message), verdict, count=6)
    id = message.headers["id"]
    assert told == [("MaxDeliveriesExceeded", id, id)]
    assert isinstance(settlement.how, Dead) and settlement.how.detail == "five times"


def test_handlers_that_kill_are_not_called_for_ever(made: Callable[..., Bench]) -> None:
    bench = made()
    bench.task(raising(AssertionError))
    raw = encode_envelope(bench.message())
    verdict = Verdict(kind=VerdictKind.LOST, detail="gone")
    assert bench.end(raw, verdict, count=8).result is not None and len(bench.called) == 1
    assert bench.end(raw, verdict, count=9).result is not None and len(bench.called) == 1


def test_an_ignored_result_stays_ignored(made: Callable[..., Bench]) -> None:
    for options, stored in (({}, False), ({"store_errors_even_if_ignored": True}, True)):
        for verdict in (None, Verdict(kind=VerdictKind.LOST)):
            bench = made(ignore_result=True, **options)
            bench.task(raising(ValueError("no")))
            settlement = bench.end(encode_envelope(bench.message()), verdict)
            assert (settlement.result is not None) is stored
