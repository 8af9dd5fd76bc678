"""Record what Celery itself writes: run this by hand to make the files in ``golden/`` anew.

Each file holds one message or result as the real Celery put it into a private Redis, and what was asked for. Random
and local parts (ids, host, pid, moments) are replaced by fixed ones, so that a new run changes nothing by itself.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import celery
import redis
from celery import Celery, chain, chord, group
from kombu.utils.json import dumps

from umbel.testing.servers import RedisServer

GOLDEN = Path(__file__).parent / "golden"
LATER = datetime(2099, 12, 31, 23, 59, 58, 123456, tzinfo=UTC)
UUID_TEXT = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
GIVEN = uuid.UUID("12345678-1234-5678-1234-567812345678")
TYPED: tuple[Any, ...] = (
    datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5),
    date(2026, 1, 2),
    time(3, 4, 5),
    Decimal("12.3400"),
    GIVEN,
    b"plain bytes",
    b"\xff\x00\xfe",
)
NESTED: tuple[Any, ...] = ({"a": [1, {"b": (2, [3, None, True])}], "c": {"d": {"e": [1.5, -7, 2**70]}}},)


class Recorder:
    """Sends through one Celery app and keeps what arrives in Redis."""

    def __init__(self, url: str) -> None:
        self.store = redis.Redis.from_url(url)
        self.app = Celery("proj", broker=url, backend=url, set_as_current=True)

        @self.app.task(name="proj.add", typing=False)
        def add(*args: Any, **kwargs: Any) -> Any:
            return args

        self.add = add

    @contextmanager
    def configured(self, **settings: Any) -> Iterator[None]:
        """Change settings of the app for a while."""
        before = {name: self.app.conf[name] for name in settings}
        self.app.conf.update(settings)
        self.app.amqp.__dict__.pop("create_task_message", None)
        yield
        self.app.conf.update(before)
        self.app.amqp.__dict__.pop("create_task_message", None)

    def message(self, name: str, send: Callable[[], Any], *, args: Any = (2, 2), kwargs: Any = None) -> None:
        """Record the first message that arrives, under this name."""
        self.store.flushdb()
        send()
        queues = [key for key in self.store.keys("celery*") if self.store.type(key) == b"list"]
        (key,) = queues
        raw = self.store.lrange(key, -1, -1)[0].decode("utf-8")
        save(name, "message", steady_envelope(raw), json.loads(dumps({"args": args, "kwargs": kwargs or {}})))

    def result(self, name: str, state: str, value: Any, traceback: str | None = None) -> None:
        """Record the stored result of a task."""
        self.store.flushdb()
        task_id = str(GIVEN)
        self.app.backend.store_result(task_id, value, state, traceback=traceback)
        raw = self.store.get(f"celery-task-meta-{task_id}").decode("utf-8")
        raw = re.sub(r'("date_done": )"[^"]*"', r'\1"2026-01-02T03:04:05.678901+00:00"', raw)
        save(f"result-{name}", "result", raw, {"state": state})


def save(name: str, kind: str, raw: str, asked: dict[str, Any]) -> None:
    """Write one golden file."""
    record = {"name": name, "kind": kind, "celery": celery.__version__, **asked, "raw": raw}
    (GOLDEN / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def steady_envelope(raw: str) -> str:
    """Replace what differs from run to run, in the body too where it is plain JSON."""
    envelope = json.loads(raw)
    if envelope["content-type"] == "application/json" and "compression" not in envelope["headers"]:
        plain_body = base64.b64decode(envelope["body"]).decode("utf-8")
        envelope["body"] = ""
        texts = steady([json.dumps(envelope), plain_body])
        steadied = json.loads(texts[0])
        steadied["body"] = base64.b64encode(texts[1].encode("utf-8")).decode("ascii")
        return json.dumps(steadied)
    return steady([raw])[0]


def steady(texts: list[str]) -> list[str]:
    """Replace ids by numbers in the order of their appearance, and the host and the moments by fixed ones."""
    ids: dict[str, str] = {str(GIVEN): str(GIVEN)}

    def number(match: re.Match[str]) -> str:
        return ids.setdefault(match[0], f"00000000-0000-4000-8000-{len(ids):012d}")

    done = []
    for text in texts:
        text = UUID_TEXT.sub(number, text)
        text = re.sub(r"gen\d+@[^\"\\]+", "gen1@host", text)
        text = re.sub(r'"expiration": "\d+"', '"expiration": "60000"', text)
        text = re.sub(r'"eta": "20[2-8]\d-[^"]*"', '"eta": "2030-01-02T03:04:05.678901+00:00"', text)
        done.append(text)
    return done


def record_calls(rec: Recorder) -> None:
    """Record calls that differ in their options and arguments."""
    add = rec.add
    rec.message("plain", lambda: add.delay(2, 2))
    rec.message("kwargs", lambda: add.delay(x=2, y="two"), args=(), kwargs={"x": 2, "y": "two"})
    rec.message("countdown", lambda: add.apply_async((2, 2), countdown=5))
    rec.message("eta", lambda: add.apply_async((2, 2), eta=LATER))
    rec.message("expires", lambda: add.apply_async((2, 2), expires=LATER))
    rec.message("priority", lambda: add.apply_async((2, 2), priority=3))
    rec.message("headers", lambda: add.apply_async((2, 2), headers={"tenant": "acme", "trace": {"id": 7}}))
    rec.message("headers-typed", lambda: add.apply_async((2, 2), headers={"at": TYPED[0], "who": GIVEN}))
    rec.message("time-limits", lambda: add.apply_async((2, 2), time_limit=30, soft_time_limit=20.5))
    rec.message("shadow", lambda: add.apply_async((2, 2), shadow="other.name", task_id=str(GIVEN), retries=2))
    rec.message("ignore-result", lambda: add.apply_async((2, 2), ignore_result=True))
    rec.message("reply-to", lambda: add.apply_async((2, 2), reply_to="my-queue", correlation_id="corr-1"))
    text = ("zażółć \"gęślą\" 'jaźń' \\ \n 日本 🎉",)
    rec.message(
        "non-ascii", lambda: add.apply_async(text, {"ключ": "значение"}), args=text, kwargs={"ключ": "значение"}
    )
    rec.message("types", lambda: add.apply_async(TYPED, {"d": TYPED[4]}), args=TYPED, kwargs={"d": TYPED[4]})
    rec.message("nested", lambda: add.apply_async(NESTED, {"k": NESTED[0]}), args=NESTED, kwargs={"k": NESTED[0]})
    long = ("x y " * 400, list(range(500)))
    rec.message("long", lambda: add.apply_async(long), args=long)


def record_canvas(rec: Recorder) -> None:
    """Record calls that are part of a workflow."""
    add = rec.add
    rec.message("link", lambda: add.apply_async((2, 2), link=add.s(3)))
    rec.message("link-error", lambda: add.apply_async((2, 2), link_error=[add.si(1, 1), add.s(5)]))
    rec.message("chain", lambda: chain(add.s(2, 2), add.s(4), add.s(8)).apply_async())
    rec.message("group", lambda: group([add.s(2, 2)]).apply_async())
    rec.message("chord", lambda: chord([add.s(2, 2), add.s(3, 3)])(add.s(10)))
    rec.message("stamped", lambda: stamped(add.s(2, 2), priority_class="high").apply_async())


def stamped(signature: Any, **stamps: Any) -> Any:
    """Return the signature with these stamps."""
    signature.stamp(**stamps)
    return signature


def record_formats(rec: Recorder) -> None:
    """Record calls in other serializers, compressed, and in protocol 1."""
    add = rec.add
    rec.message("zlib", lambda: add.apply_async((2, "x" * 500), compression="zlib"), args=(2, "x" * 500))
    rec.message("bzip2", lambda: add.apply_async((2, "x" * 500), compression="bzip2"), args=(2, "x" * 500))
    rec.message("lzma", lambda: add.apply_async((2, "x" * 500), compression="lzma"), args=(2, "x" * 500))
    for serializer in ("pickle", "yaml", "msgpack"):
        rec.message(serializer, lambda s=serializer: add.apply_async((2, "ż"), serializer=s), args=(2, "ż"))
    with rec.configured(task_protocol=1):
        rec.message("protocol1", lambda: add.apply_async((2, 2), {"k": "v"}), kwargs={"k": "v"})
        rec.message(
            "protocol1-rich",
            lambda: add.apply_async((2, 2), eta=LATER, expires=LATER, link=add.s(3), time_limit=9, headers={"a": 1}),
        )


def record_results(rec: Recorder) -> None:
    """Record the results that a worker stores."""
    rec.result("success", "SUCCESS", {"sum": 4, "when": TYPED[0]})
    rec.result("failure", "FAILURE", ValueError("too big", 7), "Traceback (most recent call last):\n  ...")
    rec.result("failure-unknown", "FAILURE", type("PaymentFailed", (Exception,), {"__module__": "shop"})("no", {1}))
    rec.result("failure-celery", "FAILURE", celery.exceptions.MaxRetriesExceededError("gave up"))
    rec.result("retry", "RETRY", KeyError("missing"), "Traceback ...")
    rec.result("revoked", "REVOKED", celery.exceptions.TaskRevokedError("revoked"))
    rec.result("custom", "PROGRESS", {"current": 3, "total": 10})
    rec.result("started", "STARTED", {"pid": 17, "hostname": "worker1@host"})


def main() -> None:
    """Record everything."""
    GOLDEN.mkdir(exist_ok=True)
    with RedisServer() as server:
        rec = Recorder(server.url)
        record_calls(rec)
        record_canvas(rec)
        record_formats(rec)
        record_results(rec)
        # What is left of the results would unsubscribe at exit, when the server is gone.
        rec.app.backend.result_consumer.cancel_for = lambda task_id: None


if __name__ == "__main__":
    main()
