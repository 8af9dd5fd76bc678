"""Every kind of connection to a real server: TLS, passwords, users, sockets, databases, names, Sentinel."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from umbel.backends.redis import RedisBackend
from umbel.brokers.redis import connection
from umbel.brokers.redis.client import Source
from umbel.brokers.redis.link import Link
from umbel.exceptions import ImproperlyConfigured, OperationalError
from umbel.testing.servers import RedisServer, free_port


def link(url: str, **options: Any) -> Link:
    return Link(Source(url, options))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    return {name: str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}


@pytest.fixture(scope="module")
def secure(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, int, str]]:
    """A server with TLS, a Unix socket, a password and a second user."""
    tls_port, path = free_port(), str(tmp_path_factory.mktemp("sock") / "redis.sock")
    settings = {
        "tls-port": str(tls_port),
        "tls-cert-file": files["cert"],
        "tls-key-file": files["key"],
        "tls-ca-cert-file": files["ca"],
        "unixsocket": path,
    }
    with RedisServer(settings=settings) as server:
        found = link(server.url)
        found.call("ACL", "SETUSER", "ann", "on", ">sesame", "~*", "&*", "+@all")
        found.call("CONFIG", "SET", "requirepass", "hush")
        found.close()
        yield server, tls_port, path


def test_tls(secure: tuple[RedisServer, int, str], files: dict[str, str]) -> None:
    _, port, _ = secure
    url = f"rediss://:hush@127.0.0.1:{port}/2?ssl_ca_certs={files['ca']}"
    with_client = f"{url}&ssl_certfile={files['cert']}&ssl_keyfile={files['key']}"
    found = link(with_client)
    assert found.call("PING") == b"PONG"
    assert found.call("SET", "big", "x" * 300_000) == b"OK"
    assert len(found.call("GET", "big")) == 300_000
    found.close()
    with pytest.raises(OperationalError, match=f"cannot reach Redis at 127.0.0.1:{port}: .*certificate"):
        link(f"rediss://:hush@127.0.0.1:{port}/0").call("PING")  # nobody here knows that authority
    with pytest.raises(ImproperlyConfigured, match="TLS options .*nowhere.pem"):
        link(f"rediss://:hush@127.0.0.1:{port}/0?ssl_ca_certs=/nowhere.pem").call("PING")


def test_tls_without_checks_must_be_asked_for(secure: tuple[RedisServer, int, str], files: dict[str, str]) -> None:
    _, port, _ = secure
    client = f"ssl_certfile={files['cert']}&ssl_keyfile={files['key']}"
    found = link(f"rediss://:hush@127.0.0.1:{port}/0?ssl_cert_reqs=none&{client}")
    assert found.call("PING") == b"PONG"
    found.close()


def test_passwords_and_users(secure: tuple[RedisServer, int, str]) -> None:
    server, _, _ = secure
    base = f"127.0.0.1:{server.port}/0"
    for credentials, user in (("ann:sesame", b"ann"), (":hush", b"default")):
        found = link(f"redis://{credentials}@{base}")
        assert found.call("ACL", "WHOAMI") == user
        found.close()
    with pytest.raises(OperationalError, match="password") as missing:
        link(f"redis://{base}").call("PING")
    with pytest.raises(OperationalError, match="WRONGPASS") as wrong:
        link(f"redis://ann:wrong@{base}").call("PING")
    assert "wrong@" not in str(wrong.value) and str(server.port) in str(missing.value)


def test_credentials_are_asked_for_at_each_connection(secure: tuple[RedisServer, int, str]) -> None:
    server, _, _ = secure

    class Rotating:
        asked = 0

        def get_credentials(self) -> tuple[str, ...]:
            self.asked += 1
            return ("ann", "sesame") if self.asked % 2 else ("hush",)

    provider = Rotating()
    found = link(f"redis://127.0.0.1:{server.port}/0", credential_provider=provider)
    assert found.call("ACL", "WHOAMI") == b"ann"
    found.drop()
    assert found.call("ACL", "WHOAMI") == b"default"
    found.close()


def test_a_unix_socket_a_database_and_a_name(secure: tuple[RedisServer, int, str]) -> None:
    _, _, path = secure
    found = link(f"redis+socket://:hush@{path}?virtual_host=5", client_name="shop")
    info = found.call("CLIENT", "INFO").decode()
    assert " db=5 " in info and " name=shop " in info and " resp=3" in info
    found.close()
    with pytest.raises(OperationalError, match="out of range"):
        link(f"redis+socket://:hush@{path}?virtual_host=99").call("PING")


def test_keepalive_is_set_on_the_socket(redis_url: str) -> None:
    found = link(redis_url, socket_keepalive=True, socket_keepalive_options={socket.TCP_KEEPIDLE: 77})
    found.open()
    assert found._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert found._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
    found.close()


def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(OperationalError, match=f"cannot reach Redis at 127.0.0.1:{port}: timed out"):
            link(f"redis://127.0.0.1:{port}/0", socket_connect_timeout=0.2).call("PING")


class NoThreads:
    """The system has no thread left."""

    def __init__(self, **options: Any) -> None:
        pass

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def test_a_name_is_looked_up_again_after_a_thread_could_not_start(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def known(host: str, *args: Any, flags: int = 0, **options: Any) -> Any:
        if host == "db.example" and flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        return real("127.0.0.1" if host == "db.example" else host, *args, flags=flags, **options)

    monkeypatch.setattr(socket, "getaddrinfo", known)
    named = link(redis_url.replace("127.0.0.1", "db.example"), socket_connect_timeout=5.0)
    with monkeypatch.context() as without:
        without.setattr(connection, "threading", SimpleNamespace(Thread=NoThreads))
        with pytest.raises(OperationalError, match="'db.example' cannot be looked up: can't start new thread"):
            named.call("PING")
    assert named.call("PING") == b"PONG"
    named.close()


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".example"])
def test_what_is_no_host_name_is_said_at_once(host: str) -> None:
    with pytest.raises(OperationalError, match=f"cannot reach Redis at {host}:6379: '{host}' is no host name"):
        link(f"redis://{host}/0").call("PING")


def closed_while(waiting: Any, close: Any) -> BaseException | None:
    """Return what a thread that waits gets when another one closes."""
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            waiting()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    # In time or not: whenever it is closed, there is one answer.
    thread.join(0.2)
    close()
    thread.join(10.0)
    assert not thread.is_alive()
    return caught[0] if caught else None


@pytest.mark.parametrize("waiting", [lambda link: link.listen(20.0), lambda link: link.call("BRPOP", "nothing", 4)])
def test_whoever_waits_is_told_when_another_thread_closes(redis_url: str, waiting: Any) -> None:
    found = link(redis_url)
    found.open()
    error = closed_while(lambda: waiting(found), found.close)
    assert isinstance(error, OperationalError) and "closed" in str(error)
    assert found.call("PING") == b"PONG"
    found.close()


def test_a_watcher_that_is_closed_stays_closed(redis_url: str) -> None:
    with contextlib.closing(RedisBackend(redis_url)) as backend:
        backend.open()
        watcher = backend.watcher()
        watcher.add(["t"])
        assert isinstance(closed_while(lambda: watcher.receive(20.0), watcher.close), OperationalError)
        with pytest.raises(OperationalError, match="closed"):
            watcher.receive(0.0)
        assert not watcher._link.connected


def test_sentinel_names_the_master(tmp_path: Path) -> None:
    with RedisServer(settings={"requirepass": ""}) as master:
        port = free_port()
        path = tmp_path / "sentinel.conf"
        path.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor shop 127.0.0.1 {master.port} 1\n")
        import subprocess

        process = subprocess.Popen(
            ["redis-server", str(path), "--sentinel"], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    found = link(f"sentinel://127.0.0.1:{port}/3", master_name="shop")
                    info = found.call("CLIENT", "INFO").decode()
                    break
                except OperationalError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            assert " db=3 " in info and f"127.0.0.1:{master.port} " in info
            found.close()
            with pytest.raises(OperationalError, match="knows no master named 'other'"):
                link(f"sentinel://127.0.0.1:{port}/0", master_name="other").call("PING")
        finally:
            process.terminate()
            process.wait(10)
