"""S23-S25, S33, S36, S37: stores, their URLs and their names, and what the package brings along."""

from __future__ import annotations

import ast
import importlib.util
import re
import socket
import ssl
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from umbel import Umbel
from umbel.brokers.redis.client import Source, parse_url
from umbel.brokers.redis.connection import tls_context
from umbel.brokers.redis.layout import PUBLISH, RESERVE, SETTLE
from umbel.brokers.redis.link import Link
from umbel.drivers import mask, open_broker, split
from umbel.exceptions import ImproperlyConfigured, OperationalError
from umbel.interfaces import Place
from umbel.setting_names import canonical, mistake
from umbel.testing.broker_base import outgoing
from umbel.utils.text import one_line

ROOT = Path(__file__).resolve().parents[2]
CA, STRANGERS_CA = trustme.CA(), trustme.CA()


# -- S23: TLS ----------------------------------------------------------------------------------------------------


@contextmanager
def server(certificate: trustme.LeafCert, *, newest: ssl.TLSVersion | None = None) -> Iterator[int]:
    """A server that ends the handshake with a Redis greeting; yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if newest is not None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = newest
        context.set_ciphers("ALL:@SECLEVEL=0")
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(20)

    def serve() -> None:
        with suppress(OSError), listening.accept()[0] as plain, context.wrap_socket(plain, server_side=True) as sock:
            answer = b"%0\r\n"  # to HELLO
            while sock.recv(4096):
                sock.sendall(answer)
                answer = b"+PONG\r\n"

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        listening.close()
        thread.join(20)


def greet(port: int, tmp_path: Path, host: str = "localhost", **options: Any) -> None:
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    link = Link(Source(f"rediss://{host}:{port}/0", {"ssl_ca_certs": str(tmp_path / "ca.pem"), **options}), timeout=5)
    try:
        link.call("PING")
    finally:
        link.close()


def test_s23_a_server_with_the_right_certificate_is_talked_to(tmp_path: Path) -> None:
    with server(CA.issue_cert("localhost")) as port:
        greet(port, tmp_path)


@pytest.mark.filterwarnings("ignore:ssl:DeprecationWarning")
@pytest.mark.parametrize("wrong", ["name", "authority", "expired", "old"])
def test_s23_a_server_that_cannot_prove_who_it_is_gets_nothing(wrong: str, tmp_path: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    certificate = {
        "name": lambda: CA.issue_cert("elsewhere.example"),
        "authority": lambda: STRANGERS_CA.issue_cert("localhost"),
        "expired": lambda: CA.issue_cert("localhost", not_before=past - timedelta(days=1), not_after=past),
        "old": lambda: CA.issue_cert("localhost"),
    }[wrong]()
    newest = ssl.TLSVersion.TLSv1_1 if wrong == "old" else None
    with server(certificate, newest=newest) as port, pytest.raises(OperationalError, match="cannot reach Redis"):
        greet(port, tmp_path)


def test_s23_checks_are_only_left_out_where_that_is_said(tmp_path: Path) -> None:
    with server(CA.issue_cert("elsewhere.example")) as port:
        greet(port, tmp_path, ssl_check_hostname=False)
    with server(STRANGERS_CA.issue_cert("elsewhere.example")) as port:
        greet(port, tmp_path, ssl_cert_reqs="none")
    context = tls_context(parse_url("rediss://h/0", {})[0].extras)
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


# -- S24, S25: names and keys ------------------------------------------------------------------------------------


def test_s24_scripts_are_constants() -> None:
    folder = ROOT / "src" / "umbel" / "brokers" / "redis"
    for script in (PUBLISH, RESERVE, SETTLE):
        rest = script.text
        for part in folder.glob("*.lua"):
            rest = rest.replace(part.read_bytes(), b"")
        assert rest.strip() == b""
    for path in folder.glob("*.lua"):
        text = path.read_text()
        assert "loadstring" not in text
        assert "load(" not in text, path


@pytest.mark.parametrize("prefix", ["x') redis.call('FLUSHALL') --", "*", "{tag}", "a:b:", "[x]*", "\\"])
def test_s24_a_key_prefix_is_a_prefix_and_nothing_else(prefix: str, redis_url: str) -> None:
    plain = open_broker(redis_url)
    plain.open()
    plain.publish([outgoing(b"kept")])
    odd = open_broker(redis_url, options={"global_keyprefix": prefix})
    odd.open()
    odd.publish([outgoing(b"mine")])
    leases = odd.leases()
    consumer = odd.consumer(leases.register("n"), ["q", "celery"])
    assert [odd.size(queue) for queue in ("q", "celery")] == [plain.size(queue) for queue in ("q", "celery")]
    assert len(consumer.reserve(10)) == 1
    consumer.close()
    assert sum(plain.size(queue) for queue in ("q", "celery")) == 1
    for broker in (leases, odd, plain):
        broker.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_s24_s25_a_prefix_in_the_store_is_no_pattern(
    kind: str, request: pytest.FixtureRequest, sqlite_url: str
) -> None:
    url = {"memory": f"memory://{request.node.name}", "sqlite": sqlite_url}.get(kind)
    broker = open_broker(url or request.getfixturevalue("redis_url"))
    broker.open()
    store = broker.store()
    assert store is not None
    keys = ["a*b", "axb", "a?b", "a[x]b", "a%b", "a_b", "a\\b", "a'b", "aéb"]
    for key in keys:
        store.put(key, key.encode())
    for key in keys:
        assert [found for found, _ in store.scan(key)] == [key]
        assert [found for found, _ in store.scan(key[:2])] == [key] or key in ("axb",)
    assert sorted(found for found, _ in store.scan("a")) == sorted(keys)
    broker.close()


# What may stand in the text of a statement: constants of these modules, and question marks.
_CONSTANTS = {"marks", "table", "key", "name", "pragma", "of", "pages", "mark", "place"}


def test_s25_values_reach_sql_as_parameters_only() -> None:
    # Everywhere, and not only where there is SQL today: this stands in for bandit's B608, which takes every f-string.
    paths = (ROOT / "src/umbel").rglob("*.py")
    seen = 0
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr not in ("execute", "executemany") or not node.args:
                continue
            for part in ast.walk(node.args[0]):
                assert not isinstance(part, ast.Mod), f"{path}:{part.lineno}"
                if isinstance(part, ast.FormattedValue):
                    seen += 1
                    names = {each.id for each in ast.walk(part) if isinstance(each, ast.Name)}
                    odd = {each for each in names if not each.lstrip("_").isupper()} - _CONSTANTS
                    attributes = {each.attr for each in ast.walk(part) if isinstance(each, ast.Attribute)}
                    assert odd <= {"self", "inclusive"}, f"{path}:{part.lineno}: {odd}"
                    assert attributes <= {"_synchronous"}, f"{path}:{part.lineno}: {attributes}"
    assert seen


def test_s25_purging_one_queue_leaves_the_others(sqlite_url: str) -> None:
    app = Umbel("shop", broker=sqlite_url, set_as_current=False)
    names = ["celery", "cel%", "cel_ry", "' OR 1=1 --", '"', "celery; DROP TABLE messages"]
    for name in names:
        app.send_task("echo", [], queue=name)
    for name in names[1:]:
        assert app.broker.purge(name) == 1
        assert app.broker.purge(name, Place.DEAD) == 0
        assert app.broker.size("celery") == 1
    app.close()


# -- S33: work that grows with the input -------------------------------------------------------------------------

LONG = 100_000


LONG_TEXTS = [
    "a" * LONG, " " * LONG, ";" * LONG, "?" * LONG, " ; " * 20_000, "redis://" + "pass" * LONG,
    "redis://h/?" + "pass" * LONG, "redis://" + "@" * LONG, "redis://:" + "%" * LONG, "redis://h?" + "&" * LONG,
    "redis://h;" * 2000, "redis://" + ":" * LONG + "@h",
]  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", LONG_TEXTS, ids=lambda text: f"{text[:16]!r}")
def test_s33_urls_and_names_of_any_length_are_read_in_linear_time(text: str) -> None:
    # Quadratic work on inputs of this size takes minutes.
    mask(text)
    split(text)
    one_line(text, 10**9)
    canonical(text)
    mistake(text[:1000])
    with suppress(ImproperlyConfigured):
        open_broker(text)


@pytest.mark.timeout(20)
def test_s33_routes_with_many_stars_are_not_tried_in_every_way() -> None:
    app = Umbel("x", broker="memory://", set_as_current=False, task_routes={"*a" * 12 + "b": {"queue": "q"}})
    assert app.queue_for("a" * 60).name == "celery"


# -- S36: what is brought along ----------------------------------------------------------------------------------


def test_s36_the_core_needs_few_packages_and_each_has_a_floor() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [line.split(">=")[0].split(";")[0] for line in project["dependencies"]]
    assert names == ["click", "msgspec", "tzdata"]
    for extra, lines in project["optional-dependencies"].items():
        for line in lines:
            assert ">=" in line or line.startswith("umbel[") or extra == "dev", (extra, line)


def test_s36_every_ignored_finding_says_why() -> None:
    bare = re.compile(r"#\s*nosec(?!\s+B\d+ # \S)")
    wrong = [path.name for path in (ROOT / "src").rglob("*.py") if bare.search(path.read_text())]
    assert wrong == []
    project = (ROOT / "pyproject.toml").read_text()
    assert tomllib.loads(project)["tool"]["bandit"] == {"skips": ["B608"]}
    assert "test_s25_values_reach_sql_as_parameters_only" in project


def test_s36_the_document_of_a_wheel_tells_nothing_about_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    kept = {"type": "website", "url": "https://umbel.example"}
    private = [
        {"type": "distribution", "url": "https://packages.example/x.whl"},
        {"type": "other", "url": f"file://{ROOT}/dist/x.whl"},
        {"name": "cdx:where", "value": str(Path.home() / "x")},
    ]
    found = {"components": [{"name": "click", "externalReferences": [kept, *private]}], "properties": private}
    assert audit.scrub(found) == {"components": [{"name": "click", "externalReferences": [kept]}], "properties": []}
    assert audit.PRIVATE.search(str(ROOT / "x"))


def test_s37_there_is_a_policy() -> None:
    policy = (ROOT / "SECURITY.md").read_text()
    for word in ("Report a vulnerability", "90 days", "Supported versions", "Not in scope", "docs/security.md"):
        assert word in policy
