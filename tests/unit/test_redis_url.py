"""What Redis URLs mean, and that their passwords stay in them."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

import hiredis
import pytest

from umbel.brokers.redis import connection
from umbel.brokers.redis.client import Source, Target, parse_url, unreachable
from umbel.brokers.redis.layout import Layout, lease_options, to_ms
from umbel.brokers.redis.link import Link
from umbel.brokers.redis.pubsub import topic
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import BrokerError, ImproperlyConfigured, OperationalError


def one(url: str, **options: Any) -> Target:
    """Return the only server that the URL names."""
    (target,) = parse_url(url, options)
    return target


@pytest.mark.parametrize(
    ("url", "host", "port", "db"),
    [
        ("redis://", "localhost", 6379, 0),
        ("redis://db.example", "db.example", 6379, 0),
        ("redis://db.example:7000/3", "db.example", 7000, 3),
        ("redis://[::1]:7000/3", "::1", 7000, 3),
        ("redis://h/?virtual_host=4", "h", 6379, 4),
        ("redis://h?db=5", "h", 6379, 5),
        ("redis://h//6", "h", 6379, 6),
        ("h:7000", "h", 7000, 0),
    ],
)
def test_where_it_is(url: str, host: str, port: int, db: int) -> None:
    target = one(url)
    assert (target.host, target.port, target.db, target.tls, target.path) == (host, port, db, False, "")


def test_user_and_password() -> None:
    target = one("redis://us%40er:p%3Aa%2Fss@h/1")
    assert (target.username, target.password) == ("us@er", "p:a/ss")
    assert (one("redis://:secret@h").username, one("redis://:secret@h").password) == (None, "secret")
    assert (one("redis://h").username, one("redis://h").password) == (None, None)
    assert one("redis://h", password="kept apart").password == "kept apart"
    assert one("redis://:here@h", password="there").password == "here"


def test_no_password_is_shown() -> None:
    for url in ("redis://user:secret@h/1", "redis+socket:///s?password=secret", "redis://h;redis://:secret@i"):
        assert "secret" not in repr(parse_url(url))
        assert "secret" not in Source(url, {}).name
    assert "secret" not in repr(parse_url("redis://h", {"password": "secret"}))


def test_tls() -> None:
    target = one("rediss://h/1?ssl_ca_certs=%2Fetc%2Fca.pem&ssl_cert_reqs=CERT_OPTIONAL&ssl_check_hostname=false")
    assert target.tls
    assert dict(target.extras) == {
        "ssl_ca_certs": "/etc/ca.pem",
        "ssl_cert_reqs": "optional",
        "ssl_check_hostname": False,
    }


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, "required"),
        ("CERT_REQUIRED", "required"),
        ("required", "required"),
        ("CERT_NONE", "none"),
        ("none", "none"),
        (ssl.CERT_NONE, "none"),
        (ssl.CERT_OPTIONAL, "optional"),
        (ssl.CERT_REQUIRED, "required"),
    ],
)
def test_certificates_are_required_unless_said(given: Any, meant: str) -> None:
    options = {} if given is None else {"ssl_cert_reqs": given}
    assert one("rediss://h").extras["ssl_cert_reqs"] == "required"
    assert one("rediss://h", ssl=options).extras["ssl_cert_reqs"] == meant


def test_broker_use_ssl_makes_any_url_tls() -> None:
    assert one("redis://h", ssl=True).tls
    assert one("redis://h", ssl={"ssl_ca_certs": "ca.pem"}).extras["ssl_ca_certs"] == "ca.pem"


def test_a_socket() -> None:
    target = one("redis+socket:///var/run/redis.sock?virtual_host=7&password=secret")
    assert (target.path, target.db, target.password, target.name) == (
        "/var/run/redis.sock",
        7,
        "secret",
        "/var/run/redis.sock",
    )
    assert one("redis+socket:///tmp/a%20b.sock").path == "/tmp/a b.sock"


def test_a_failover_list_is_tried_in_order() -> None:
    targets = parse_url("redis://a:1/0; redis://b:2/0;")
    assert [target.name for target in targets] == ["a:1", "b:2"]


def test_sentinels_share_database_and_password() -> None:
    targets = parse_url("sentinel://:secret@a/3;sentinel://b:27000", {"master_name": "main"})
    assert [(t.name, t.db, t.password, t.master_name) for t in targets] == [
        ("a:26379", 3, "secret", "main"),
        ("b:27000", 3, "secret", "main"),
    ]


def test_timeouts_from_the_url_win() -> None:
    source = Source("redis://h?socket_timeout=1.5", {"socket_timeout": 9})
    assert source.socket_timeout == 1.5
    assert Source("redis://h", {"socket_timeout": 9}).socket_timeout == 9.0
    assert Source("redis://h", {}).socket_timeout == 5.0


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "empty"),
        ("http://h", "http://"),
        ("redis://h/nine", "'nine'"),
        ("redis://h:port", "port"),
        ("redis://h?ssl_ca_certs=x", "rediss://"),
        ("rediss://h?ssl_cert_reqs=MAYBE", "CERT_REQUIRED"),
        ("sentinel://h", "master_name"),
    ],
)
def test_what_is_wrong_is_said(url: str, said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=said):
        parse_url(url)


@pytest.mark.parametrize(
    "url", ["redis://me:2024/secret@db:6379/0", "redis://:2024/secret@db", "rediss://a:b/secret@c"]
)
def test_a_password_that_is_not_escaped_is_not_shown(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="%2F") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value) and "2024" not in str(caught.value)


class Canned:
    """A socket whose server says one thing."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self.closed = False

    def settimeout(self, seconds: float) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        pass

    def recv(self, size: int) -> bytes:
        reply, self._reply = self._reply, b""
        return reply

    def close(self) -> None:
        self.closed = True


def hello(version: str, mode: str = "standalone") -> bytes:
    return b"%2\r\n$7\r\nversion\r\n+" + version.encode() + b"\r\n$4\r\nmode\r\n+" + mode.encode() + b"\r\n"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (hello("6.2.0"), ""),
        (hello("7.2.4"), ""),
        (hello("10.0.0"), ""),
        (hello("6.0.16", "sentinel"), ""),
        (hello("unknown"), ""),
        (b"+OK\r\n", ""),
        (hello("6.0.16"), "it is Redis 6.0.16, and Umbel needs 6.2 or newer; upgrade that server"),
        (hello("5.9"), "it is Redis 5.9, and Umbel needs 6.2 or newer"),
        (b"-ERR unknown command 'HELLO'\r\n", "it is older than Redis 6 .*, and Umbel needs 6.2 or newer"),
    ],
    ids=["6.2", "7.2", "10.0", "sentinel", "no number", "no map", "6.0", "5.9", "no HELLO"],
)
def test_a_server_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, reply: bytes, said: str) -> None:
    made = Canned(reply)
    monkeypatch.setattr(connection, "_dial", lambda target, deadline: made)
    if said:
        with pytest.raises(OperationalError, match=f"cannot reach Redis at h:6379: {said}"):
            Source("redis://h", {}).connect(1.0)
    else:
        Source("redis://h", {}).connect(1.0)
    assert made.closed is bool(said)


IN_6_2 = "ERR Error running script (call to f_8b2f): @user_script:14: "


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "OOM command not allowed when used memory > 'maxmemory'. script: f_8b2f, on @user_script:14.",
            OperationalError,
        ),
        (IN_6_2 + "@user_script: 14: -OOM command not allowed when used memory > 'maxmemory'.", OperationalError),
        (IN_6_2 + "@user_script: 14: -READONLY You can't write against a read only replica.", OperationalError),
        ("@user_script: 30: -MISCONF Errors writing to the AOF file: No space left", OperationalError),
        (IN_6_2 + "WRONGTYPE Operation against a key holding the wrong kind of value", BrokerError),
        ("ERR Error running script: the text says @user_script: 1: no kind", BrokerError),
        ("WRONGTYPE @user_script: 1: -OOM is what somebody's key is called", BrokerError),
    ],
)
def test_the_kind_of_an_error_is_found_inside_scripts_too(text: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        Link(Source("redis://h", {})).fail(hiredis.ReplyError(text))
    assert type(caught.value) is error


def test_nobody_there() -> None:
    with pytest.raises(OperationalError, match=r"127\.0\.0\.1:1\b.*refused") as caught:
        Source("redis://:secret@127.0.0.1:1/0", {}).connect(1.0)
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_is_named_with_the_reason() -> None:
    assert str(unreachable("h:1", "gone.")) == "cannot reach Redis at h:1: gone"
    assert str(unreachable("h:1", TimeoutError())) == "cannot reach Redis at h:1: TimeoutError"
    assert "password" in str(unreachable("h:1", "NOAUTH Authentication required."))


def test_priorities_fall_to_their_step() -> None:
    layout = Layout({"global_keyprefix": "p_"}, SYSTEM_CLOCK)
    assert [layout.step(priority) for priority in (None, -1, 0, 2, 3, 5, 6, 8, 9, 99)] == [0, 0, 0, 0, 3, 3, 6, 6, 9, 9]
    assert layout.list_keys("q") == ["p_q", "p_q\x06\x163", "p_q\x06\x166", "p_q\x06\x169"]
    assert Layout({"priority_steps": [0, 5]}, SYSTEM_CLOCK).list_keys("q") == ["q", "q\x06\x165"]
    with pytest.raises(ImproperlyConfigured, match="priority_steps"):
        Layout({"priority_steps": [1, 5]}, SYSTEM_CLOCK)


def test_a_lease_outlives_two_late_beats() -> None:
    assert lease_options({}) == (30.0, 10.0)
    with pytest.raises(ImproperlyConfigured, match="lease_ttl=20"):
        lease_options({"lease_ttl": 20})


def test_a_moment_is_never_rounded_down() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    whole = int(moment.timestamp() * 1000)
    assert to_ms(moment) == to_ms(moment.replace(tzinfo=None)) == whole
    assert to_ms(moment + timedelta(microseconds=1)) == whole + 1


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("#", ["", "a", "a.b"], []),
        ("worker.#", ["worker", "worker.online", "worker.a.b"], ["workers.x", "a.worker"]),
        ("#.online", ["online", "worker.online", "a.b.online"], ["xonline"]),
        ("*.sent", ["task.sent"], ["task.a.sent", "sent"]),
        ("a.b", ["a.b"], ["axb", "a.b.c"]),
    ],
)
def test_topics(pattern: str, matching: list[str], others: list[str]) -> None:
    matches = topic(pattern)
    assert [key for key in matching + others if matches(key)] == matching
