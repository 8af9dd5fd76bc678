"""S21: messages signed with shared keys."""

from __future__ import annotations

import copy
import json
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile import admit, inject, make_app, peek, refusal, runs
from support import environment, run, worker
from umbel import Umbel, signals
from umbel.envelope import Message, decode_envelope, encode_envelope
from umbel.exceptions import ImproperlyConfigured, SecurityError
from umbel.interfaces import Dead, Execution, Place, Settlement
from umbel.publishing import build
from umbel.settings import check
from umbel.signing import HEADER, Keyring, generate_key, keyring_of, verifier_of
from umbel.testing import FakeClock
from umbel.worker.inprocess import start_worker

OLD, NEW, OTHER = generate_key(), generate_key(), generate_key()


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Any:
    made = make_app(request.node.name, security_key=NEW)
    yield made
    made.close()


def sent(app: Any, *args: Any, **options: Any) -> Message:
    """Return a signed message as it is in the queue."""
    return build(app, "echo", args, {}, options).message


# -- the round trip ----------------------------------------------------------------------------------------------


def test_s21_signed_tasks_run_with_their_retries_callbacks_and_chains(app: Any) -> None:
    @app.task(name="again", bind=True, max_retries=2)
    def again(self: Any) -> int:
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    @app.task(name="store")
    def store(value: Any) -> None:
        seen.append(value)

    seen: list[Any] = []
    with start_worker(app):
        assert again.apply_async(link=store.s()).get(timeout=20) == 2
        app.send_many([(store, (n,)) for n in range(3)])
        assert app.send_task("echo", [1]).get(timeout=20) == [[1], {}]
    assert sorted(seen) == [0, 1, 2, 2]
    assert peek(app, Place.DEAD) == []


def test_s21_who_has_no_key_cannot_have_a_task_run(app: Any) -> None:
    stranger = make_app(app.broker_url.removeprefix("memory://"))
    with start_worker(app):
        forged = stranger.send_task("echo", [1])
        assert app.send_task("echo", [2]).get(timeout=20) == [[2], {}]
    (dead,) = peek(app, Place.DEAD)
    assert (dead.reason, dead.detail) == ("bad_signature", "it is not signed")
    assert decode_envelope(dead.raw).headers["id"] == forged.id
    # Nor end the result of a task whose id he knows.
    assert forged.state == "PENDING"
    stranger.close()


def test_s21_unset_it_adds_nothing(request: pytest.FixtureRequest) -> None:
    app = make_app(request.node.name)
    assert HEADER not in sent(app).headers
    assert keyring_of(app.conf) is None
    assert verifier_of(app.conf, app.clock.time) is None


# -- what it covers ----------------------------------------------------------------------------------------------


def test_s21_every_byte_of_the_body_is_covered(app: Any) -> None:
    message = sent(app, "amount", 100)
    assert runs(app, message)
    for index in range(len(message.body)):
        body = bytearray(message.body)
        body[index] ^= 1
        changed = copy.copy(message)
        changed.body = bytes(body)
        assert refusal(app, changed) == "bad_signature", index


def test_s21_every_character_of_the_signature_counts(app: Any) -> None:
    message = sent(app)
    signature = message.headers[HEADER]
    for index, char in enumerate(signature):
        other = copy.deepcopy(message)
        other.headers[HEADER] = signature[:index] + ("A" if char != "A" else "B") + signature[index + 1 :]
        assert refusal(app, other) == "bad_signature", index
    odds = ("", ":", "1", 5, None, True, [], {}, "é" * 50, "\ud800", signature + "=", signature[:-1], signature * 1000)
    for odd in odds:
        other = copy.deepcopy(message)
        other.headers[HEADER] = odd
        assert refusal(app, other) == "bad_signature", odd


def test_s21_every_header_and_what_says_how_to_read_the_body_is_covered(app: Any) -> None:
    message = sent(app, 1, headers={"tenant": "a"}, expires=60)
    changes: list[Any] = []
    for name in [name for name in message.headers if name != HEADER]:
        changes.append(lambda m, n=name: m.headers.update({n: "fail"}))
        changes.append(lambda m, n=name: m.headers.pop(n))
    changes += [
        lambda m: m.headers.update(added="x"),
        lambda m: m.headers.update(compression="application/x-gzip"),
        lambda m: setattr(m, "content_type", "application/x-python-serialize"),
        lambda m: setattr(m, "content_encoding", "latin-1"),
        lambda m: m.properties.update(correlation_id="other"),
        lambda m: m.properties.update(reply_to="other"),
    ]
    for change in changes:
        changed = copy.deepcopy(message)
        change(changed)
        assert refusal(app, changed) == "bad_signature", changed


def test_s21_a_message_is_bound_to_its_queue(app: Any) -> None:
    message = sent(app, queue="low")
    assert runs(app, message, "low")
    assert refusal(app, message, "admin") == "bad_signature"


def test_s21_what_brokers_add_on_the_way_does_not_matter(app: Any) -> None:
    message = sent(app)
    message.headers["redelivered"] = True
    message.headers["x-death"] = [{"count": 1}]
    message.properties["delivery_info"]["redelivered"] = True
    message.properties["delivery_tag"] = "another"
    assert runs(app, message)


def test_s21_parts_cannot_be_moved_from_one_field_into_the_next() -> None:
    keys = Keyring([b"k" * 16])
    one = Message(body=b"b", content_type="ab", content_encoding="c")
    two = Message(body=b"b", content_type="a", content_encoding="bc")
    keys.sign(one, "q", 1)
    keys.sign(two, "q", 1)
    assert one.headers[HEADER] != two.headers[HEADER]


def test_s21_a_key_given_twice_in_the_envelope_counts_once_for_all(app: Any) -> None:
    # What is verified is what is run: one parse serves both, so the last of two wins for both.
    raw = encode_envelope(sent(app))
    doubled = raw.replace(b'"task":"echo"', b'"task":"fail","task":"echo"')
    swapped = raw.replace(b'"task":"echo"', b'"task":"echo","task":"fail"')
    assert raw != doubled != swapped
    decided = admit(app, doubled)
    assert isinstance(decided, Execution)
    assert decided.call.task == "echo"
    assert refusal(app, swapped) == "bad_signature"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
    | st.binary(max_size=4) | st.datetimes(timezones=st.just(UTC)) | st.decimals(allow_nan=False) | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
RING = Keyring([NEW.encode()])


@given(headers=st.dictionaries(st.text(min_size=1, max_size=8), values, max_size=4), body=st.binary(max_size=40))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_s21_the_envelope_keeps_a_signature_whatever_the_headers_hold(headers: dict[str, Any], body: bytes) -> None:
    message = Message(body=body, headers={**headers}, properties={"reply_to": "r", "correlation_id": "c"})
    RING.sign(message, "q", 1)
    arrived = decode_envelope(encode_envelope(message))
    assert RING.refusal(arrived, "q") is None
    arrived.headers["one-more"] = 1
    assert isinstance(RING.refusal(arrived, "q"), SecurityError)


def test_s21_receivers_and_middlewares_may_still_change_a_message(app: Any) -> None:
    class Adds:
        def publish(self, outgoings: Any, call_next: Any) -> Any:
            for outgoing in outgoings:
                outgoing.message.headers["trace"] = "t"
            return call_next(outgoings)

    def receiver(headers: dict[str, Any], body: Any, **_: Any) -> None:
        headers["seen"] = "s"
        body[0].append(3)

    app.middlewares.append(Adds())
    signals.before_task_publish.connect(receiver)
    try:
        app.send_task("echo", [2])
    finally:
        signals.before_task_publish.disconnect(receiver)
    (waiting,) = peek(app)
    decided = admit(app, waiting.raw)
    assert isinstance(decided, Execution)
    assert (list(decided.call.args), decided.call.headers["trace"], decided.call.headers["seen"]) == ([2, 3], "t", "s")


def test_s21_callbacks_and_chords_inside_the_body_are_covered(app: Any) -> None:
    message = sent(app, link=app.signature("echo"))
    assert b'"callbacks"' in message.body
    message.body = message.body.replace(b'"task": "echo"', b'"task": "fail"')
    assert refusal(app, message) == "bad_signature"


def test_s21_protocol_1_is_covered_too(request: pytest.FixtureRequest) -> None:
    app = make_app(request.node.name, security_key=NEW, task_protocol=1)
    message = sent(app, 5)
    assert set(message.headers) == {HEADER}
    assert runs(app, message)
    message.body = message.body.replace(b"5", b"6")
    assert refusal(app, message) == "bad_signature"


def test_s21_it_is_checked_before_anything_is_unpacked_or_decoded(app: Any) -> None:
    message = sent(app)
    message.headers["compression"] = "application/x-nonsense"
    message.content_type = "application/x-python-serialize"
    assert refusal(app, message) == "bad_signature"


def test_s21_deep_headers_are_refused_and_harm_nothing(app: Any) -> None:
    message = sent(app)
    message.headers["deep"] = 1
    for depth, reason in ((200, "bad_signature"), (900, "undecodable")):
        raw = encode_envelope(message).replace(b'"deep":1', b'"deep":' + b"[" * depth + b"]" * depth)
        assert refusal(app, raw) == reason


# -- keys and their change ---------------------------------------------------------------------------------------


def test_s21_keys_are_changed_in_three_steps_without_a_gap(request: pytest.FixtureRequest) -> None:
    def app(*keys: str) -> Any:
        return make_app(request.node.name, security_key=list(keys))

    before, first, second, after = app(OLD), app(OLD, NEW), app(NEW, OLD), app(NEW)
    for sender, reader in [(before, first), (first, before), (first, second), (second, first), (second, after),
                           (after, second)]:  # fmt: skip
        assert runs(reader, sent(sender))
    assert refusal(after, sent(before)) == "bad_signature"
    assert refusal(before, sent(after)) == "bad_signature"


def test_s21_unsigned_messages_are_run_while_the_fleet_moves(request: pytest.FixtureRequest) -> None:
    moving = make_app(request.node.name, security_key=NEW, security_accept_unsigned=True)
    assert runs(moving, sent(make_app(request.node.name)))
    assert runs(moving, sent(moving))
    message = sent(moving)
    message.headers["task"] = "fail"
    assert refusal(moving, message) == "bad_signature"
    assert refusal(moving, sent(make_app(request.node.name, security_key=OTHER))) == "bad_signature"


def test_s21_the_header_that_a_celery_worker_copies_to_its_retry_counts_as_none(request: pytest.FixtureRequest) -> None:
    strict = make_app(request.node.name, security_key=NEW)
    moving = make_app(request.node.name, security_key=NEW, security_accept_unsigned=True)
    message = sent(strict)
    message.headers["retries"] = 1
    assert runs(moving, message)
    assert refusal(strict, message) == "bad_signature"


NO_KEYS = [
    "short", b"short", "", [], ["x" * 16, "short"], 5, {"a": "b" * 16}, "/etc/ssl/private/worker.key", "~/worker.key",
    "keys/worker.pem", "-----BEGIN PRIVATE KEY-----\nMIIB",
]  # fmt: skip


@pytest.mark.parametrize("key", NO_KEYS)
def test_s21_a_key_that_is_none_is_an_error_that_does_not_show_it(key: Any) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        check(Umbel("x", security_key=key, set_as_current=False).conf)
    assert "security_key" in str(caught.value)
    if isinstance(key, str) and key:
        assert key not in str(caught.value)


def test_s21_text_bytes_and_files_are_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# the newest first\n{NEW}\n\n{OLD}\n")
    ring = keyring_of(Umbel("x", security_key=file, set_as_current=False).conf)
    message = Message(body=b"x")
    assert ring is not None
    ring.sign(message, "q", 1)
    assert Keyring([NEW.encode()]).refusal(message, "q") is None
    for given_as in (f"file:{file}", NEW, NEW.encode(), [OLD, file]):
        again = keyring_of(Umbel("x", security_key=given_as, set_as_current=False).conf)
        assert again is not None
        assert again.refusal(message, "q") is None


def test_s21_a_file_of_keys_must_be_a_file_that_others_cannot_write(tmp_path: Path) -> None:
    file, pipe, pem = tmp_path / "open", tmp_path / "pipe", tmp_path / "pem"
    file.write_text(NEW)
    file.chmod(0o666)
    os.mkfifo(pipe)
    pem.write_text("-----BEGIN PRIVATE KEY-----\nMIIBVAIBADANBgkqhkiG9w0BAQEF\n")
    for path in (file, pipe, pem, tmp_path, tmp_path / "missing"):
        with pytest.raises(ImproperlyConfigured, match="security_key"):
            keyring_of(Umbel("x", security_key=path, set_as_current=False).conf)


def test_s21_no_key_is_shown(app: Any) -> None:
    ring = keyring_of(app.conf)
    shown = repr(ring) + app.conf.humanize(with_defaults=True) + json.dumps(app.conf.table(), default=repr)
    assert NEW not in shown


# -- replay ------------------------------------------------------------------------------------------------------


def test_s21_a_signed_message_can_be_sent_again_until_it_is_too_old(request: pytest.FixtureRequest) -> None:
    app = make_app(request.node.name, security_key=NEW, security_max_age=60)
    app.clock = clock = FakeClock()
    now, later = sent(app), sent(app, countdown=3600)
    assert runs(app, now)
    clock.advance(59)
    assert runs(app, now)
    clock.advance(2)
    assert refusal(app, now) == "bad_signature"
    clock.advance(3600 - 10)
    assert runs(app, later)
    clock.advance(70)
    assert refusal(app, later) == "bad_signature"


def test_s21_the_end_of_a_message_cannot_be_put_off(app: Any) -> None:
    message = sent(app, expires=1)
    message.headers["expires"] = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert refusal(app, message) == "bad_signature"


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_s21_it_holds_through_real_stores(kind: str, request: pytest.FixtureRequest, sqlite_url: str) -> None:
    url = sqlite_url if kind == "sqlite" else request.getfixturevalue("redis_url")
    app = Umbel("shop", broker=url, backend=url, security_key=[NEW, OLD], set_as_current=False)
    stranger = Umbel("shop", broker=url, backend=url, security_key=OTHER, set_as_current=False)

    @app.task(name="echo")
    def echo(value: Any) -> Any:
        return value

    with start_worker(app):
        forged = stranger.send_task("echo", [1])
        assert echo.apply_async((Decimal("1.5"),), countdown=0.1, headers={"at": datetime.now(UTC)}).get(timeout=30)
        assert echo.apply_async((2,), compression="zlib", priority=3).get(timeout=30) == 2
    (dead,) = app.broker.peek("celery", place=Place.DEAD)
    assert dead.reason == "bad_signature"
    assert decode_envelope(dead.raw).headers["id"] == forged.id
    app.close()
    stranger.close()


def test_s21_a_condemned_message_is_verified_as_well(app: Any) -> None:
    message = sent(app)
    del message.headers[HEADER]
    inject(app, message)
    with start_worker(app):
        app.send_task("echo", []).get(timeout=20)
    decided = admit(app, message)
    assert isinstance(decided, Settlement)
    assert isinstance(decided.how, Dead)
    assert (decided.result, list(decided.publish)) == (None, [])


# -- a fleet that moves ------------------------------------------------------------------------------------------

FLEET = """
import os
from {module} import {cls}
app = {cls}("fleet", broker=os.environ["URL"], backend=os.environ["URL"])
{conf}

@app.task(name="add", bind=True, max_retries=2)
def add(self, x, y):
    if x == "retry":
        if self.request.retries < 1:
            raise self.retry(countdown=0)
        return y
    return x + y
"""
CLIENT = "from fleet import add\nprint(add.delay(2, 3).get(timeout=30), add.delay('retry', 4).get(timeout=30))"


def test_s21_celery_carries_a_signature_along_and_its_own_messages_are_let_in_while_moving(
    tmp_path: Path, redis_url: str
) -> None:
    env = environment(URL=redis_url, C_FORCE_ROOT="1")
    conf = f"app.conf.update(security_key={NEW!r}, security_accept_unsigned=True)"
    for side in ("umbel", "celery"):
        (tmp_path / side).mkdir()
        cls = side.capitalize()
        text = FLEET.format(module=side, cls=cls, conf=conf if side == "umbel" else "")
        (tmp_path / side / "fleet.py").write_text(text)
    with worker("fleet", "-c", "1", "-l", "info", cwd=tmp_path / "celery", env=env, celery=True):
        assert run(CLIENT, cwd=tmp_path / "umbel", env=env, timeout=60).split() == ["5", "4"]
        code = "from fleet import add\nprint([add.delay('retry', n).id for n in range(20)])"
        run(code, cwd=tmp_path / "umbel", env=env, timeout=60)
        # Some of these are retried by one kind of worker and run by the other.
        with worker("fleet", "-c", "1", "-l", "info", cwd=tmp_path / "umbel", env=env) as mine:
            assert run(CLIENT, cwd=tmp_path / "celery", env=env, timeout=60).split() == ["5", "4"]
    assert "bad_signature" not in mine.output
