"""Traces and metrics of real processes: a producer, workers, retries, canvases, and Celery on either side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otel_support import CELERY_SHOP, SHOP, Spans, follows, id_of, trace_of
from support import environment, eventually, run, worker


@pytest.fixture
def spans(tmp_path: Path) -> Path:
    folder = tmp_path / "spans"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "peer.py").write_text(CELERY_SHOP)
    return tmp_path


@pytest.fixture(params=["redis", "sqlite"])
def env(request: pytest.FixtureRequest, spans: Path) -> dict[str, str]:
    return environment(BROKER=request.getfixturevalue(f"{request.param}_url"), SPANS=str(spans))


def produce(code: str, folder: Path, env: dict[str, str], module: str = "shop") -> str:
    """Run code in a span called checkout, in a process that exports."""
    indented = "\n".join(f"    {line}" for line in code.splitlines())
    return run(
        f"import {module} as shop\nfrom {module} import *\nleave = export()\n"
        f"with trace.get_tracer('web').start_as_current_span('checkout'):\n{indented}\nleave()",
        cwd=folder,
        env=env,
    )


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_a_task_belongs_to_the_trace_of_its_sender(pool: str, folder: Path, spans: Path, sqlite_url: str) -> None:
    env = environment(BROKER=sqlite_url, SPANS=str(spans))
    with worker("shop", "-l", "info", "-P", pool, "-c", "2", cwd=folder, env=env):
        task_id = produce("print(add.delay(1, 2).id)\naio.delay().get(timeout=30)", folder, env).split()[0]
        eventually(lambda: len(Spans(spans).all("CONSUMER")) == 3)
    found = Spans(spans)
    checkout = found.named("checkout")
    sent = next(s for s in found.all("PRODUCER", "shop.add") if s["attributes"]["messaging.message.id"] == task_id)
    ran = next(s for s in found.all("CONSUMER", "shop.add") if s["attributes"]["messaging.message.id"] == task_id)
    assert sent["name"] == "send celery" and sent["parent_id"] == id_of(checkout)
    assert ran["name"] == "process celery" and follows(ran, sent)
    assert ran["attributes"] == {
        "messaging.system": "sqlite",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "celery",
        "messaging.message.id": task_id,
        "messaging.message.conversation_id": task_id,
        "umbel.task.name": "shop.add",
        "umbel.task.state": "SUCCESS",
    }
    assert id_of(ran) in [span["parent_id"] for span in found.spans if span["name"] == "inside"]
    # What a coroutine sends after it has waited is its child too.
    coroutine = found.one("CONSUMER", "shop.aio")
    nested = next(s for s in found.all("PRODUCER", "shop.add") if s is not sent)
    assert nested["parent_id"] == id_of(coroutine) and len({trace_of(span) for span in found.spans}) == 1


def test_retries_chains_and_chords_are_one_trace(folder: Path, spans: Path, env: dict[str, str]) -> None:
    work = """\
flaky.delay().get(timeout=30)
chain(add.s(1, 2), add.s(3)).delay().get(timeout=30)
assert chord([add.s(1, 1), add.s(2, 2)], total.s()).delay().get(timeout=30) == 6
bad.apply_async(link_error=told.s()).get(timeout=30, propagate=False)
expected.delay().get(timeout=30, propagate=False)
outer.delay().get(timeout=30)"""
    with worker("shop", "-l", "info", "-c", "2", cwd=folder, env=env):
        produce(work, folder, env)
        eventually(lambda: len(Spans(spans).all("CONSUMER")) == 12)
    found = Spans(spans)
    assert len({trace_of(span) for span in found.spans}) == 1
    # Each task that ran follows the message that asked for it.
    messages = {id_of(span): span for span in found.all("PRODUCER")}
    for ran in found.all("CONSUMER"):
        assert follows(ran, messages[ran["parent_id"]]), ran["attributes"]
    first, second = found.all("CONSUMER", "shop.flaky")
    assert messages[second["parent_id"]]["parent_id"] == id_of(first)
    assert (first["attributes"]["umbel.task.state"], second["attributes"]["umbel.task.retries"]) == ("RETRY", 1)
    assert [event["name"] for event in first["events"]] == ["retry"] and first["status"]["status_code"] == "UNSET"
    total = found.one("CONSUMER", "shop.total")
    members = {span["attributes"]["messaging.message.id"] for span in found.all("CONSUMER", "shop.add")}
    assert len(members) == 5 and messages[total["parent_id"]]["parent_id"] is not None
    bad, told = found.one("CONSUMER", "shop.bad"), found.one("CONSUMER", "shop.told")
    assert bad["status"] == {"status_code": "ERROR", "description": "ValueError: no"}
    assert bad["attributes"]["error.type"] == "ValueError"
    assert bad["events"][0]["attributes"]["exception.message"] == "no"
    assert messages[told["parent_id"]]["parent_id"] == id_of(bad)
    # An error that the task said it raises is none of its own.
    assert found.one("CONSUMER", "shop.expected")["status"]["status_code"] == "UNSET"
    outer = found.one("CONSUMER", "shop.outer")
    assert id_of(outer) in [span["parent_id"] for span in messages.values()]


def test_a_bulk_is_one_sending_of_many_messages(folder: Path, spans: Path, env: dict[str, str]) -> None:
    with worker("shop", "-l", "info", "-c", "1", cwd=folder, env=env):
        produce("for r in app.send_many([add.s(n, n) for n in range(3)]): r.get(timeout=30)", folder, env)
        eventually(lambda: len(Spans(spans).all("CONSUMER")) == 3)
    found = Spans(spans)
    bulk = found.one("CLIENT")
    made = found.all("PRODUCER")
    assert {span["name"] for span in made} == {"create celery"}
    assert bulk["attributes"]["messaging.batch.message_count"] == 3
    assert [link["context"]["span_id"] for link in bulk["links"]] == [id_of(span) for span in made]
    assert all(any(follows(ran, span) for span in made) for ran in found.all("CONSUMER"))


def test_links_alone_make_a_trace_of_each_task(folder: Path, spans: Path, env: dict[str, str]) -> None:
    text = (folder / "shop.py").read_text()
    (folder / "shop.py").write_text(text.replace("instrument(app)", "instrument(app, use_span_links=True)"))
    with worker("shop", "-l", "info", "-c", "1", cwd=folder, env=env):
        produce("add.delay(1, 2).get(timeout=30)", folder, env)
        eventually(lambda: len(Spans(spans).all("CONSUMER")) == 1)
    found = Spans(spans)
    ran, sent = found.one("CONSUMER"), found.one("PRODUCER")
    assert ran["parent_id"] is None and trace_of(ran) != trace_of(sent)
    assert [link["context"]["span_id"] for link in ran["links"]] == [id_of(sent)]


def test_metrics_follow_the_conventions(folder: Path, spans: Path, redis_url: str) -> None:
    env = environment(BROKER=redis_url, SPANS=str(spans))
    with worker("shop", "-l", "info", "-c", "1", cwd=folder, env=env):
        produce("add.delay(1, 2).get(timeout=30)\nbad.delay().get(timeout=30, propagate=False)", folder, env)
    # Written when the processes ended.
    found = Spans(spans)
    (sent,) = found.points("messaging.client.sent.messages")
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    place = {"messaging.system": "redis", "server.address": "127.0.0.1", "server.port": port}
    assert sent["value"] == 2 and sent["unit"] == "{message}"
    send = {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    assert sent["attributes"] == {**place, **send, "messaging.destination.name": "celery"}
    (duration,) = found.points("messaging.client.operation.duration")
    assert duration["count"] == 2 and duration["unit"] == "s"
    consumed = found.points("messaging.client.consumed.messages")
    assert {point["attributes"].get("error.type"): point["value"] for point in consumed} == {None: 1, "FAILURE": 1}
    processed = {point["attributes"]["umbel.task.name"]: point for point in found.points("messaging.process.duration")}
    assert processed["shop.add"]["count"] == 1 and processed["shop.add"]["explicit_bounds"][0] == 0.005


def test_a_broker_that_is_away_is_an_error_of_the_sending(folder: Path, spans: Path) -> None:
    env = environment(BROKER="redis://127.0.0.1:1/0", SPANS=str(spans))
    code = "try: add.delay(1, 2)\nexcept app_error(): pass"
    code = code.replace("app_error()", "__import__('umbel').exceptions.OperationalError")
    produce(code, folder, env)
    found = Spans(spans)
    sent = found.one("PRODUCER")
    assert sent["status"]["status_code"] == "ERROR"
    assert sent["attributes"]["error.type"] == "umbel.exceptions.OperationalError"
    (point,) = found.points("messaging.client.sent.messages")
    assert point["attributes"]["error.type"] == "umbel.exceptions.OperationalError"


@pytest.mark.parametrize("direction", ["to Celery", "from Celery"])
def test_a_trace_goes_to_and_from_celery(direction: str, folder: Path, spans: Path, redis_url: str) -> None:
    env = environment(BROKER=redis_url, SPANS=str(spans))
    theirs = direction == "to Celery"
    target, producer = ("peer", "shop") if theirs else ("shop", "peer")
    setup = "" if theirs else "CeleryInstrumentor().instrument()\n"
    with worker(target, "-l", "info", "-c", "1", cwd=folder, env=env, celery=theirs):
        produce(f"{setup}add.delay(1, 2).get(timeout=30)", folder, env, producer)
        eventually(lambda: len(Spans(spans).all("CONSUMER", "shop.add")) == 1)
    found = Spans(spans)
    sent, ran = found.one("PRODUCER", "shop.add"), found.one("CONSUMER", "shop.add")
    assert ran["parent_id"] == id_of(sent)
    assert trace_of(ran) == trace_of(sent) == trace_of(found.named("checkout"))
    assert {sent["name"], ran["name"]} == (
        {"send celery", "run/shop.add"} if theirs else {"apply_async/shop.add", "process celery"}
    )


def test_the_json_log_names_the_trace(folder: Path, spans: Path, redis_url: str) -> None:
    env = environment(BROKER=redis_url, SPANS=str(spans))
    options = ("-l", "info", "-c", "1", "--log-format", "json")
    with worker("shop", *options, cwd=folder, env=env) as running:
        produce("add.delay(1, 2).get(timeout=30)", folder, env)
        eventually(lambda: len(Spans(spans).all("CONSUMER")) == 1)
        running.expect("succeeded in")
    # Not of the log are what warns root before there is one, and what this test notes of the end.
    lines = [line for line in running.lines if not line.startswith(("SecurityWarning", "<end"))]
    logged: list[dict[str, Any]] = [json.loads(line) for line in lines]
    (line,) = [each for each in logged if "succeeded in" in each["message"]]
    ran = Spans(spans).one("CONSUMER")
    assert (f"0x{line['trace_id']}", f"0x{line['span_id']}") == (trace_of(ran), id_of(ran))
    assert (line["task_name"], line["queue"], line["retries"]) == ("shop.add", "celery", 0)
