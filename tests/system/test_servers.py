"""The private servers of the tests are private, and gone afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from umbel.testing.servers import RedisServer, require


def test_a_restart_keeps_the_data_of_an_append_only_server() -> None:
    with RedisServer(appendonly=True) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("k", "v")
        first = server.pid
        server.kill()
        assert server.pid is None
        server.start()
        assert server.pid not in (None, first)
        with redis.Redis.from_url(server.url) as client:
            assert client.get("k") == b"v"


def test_without_it_a_restart_forgets() -> None:
    with RedisServer() as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("k", "v")
        server.restart()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("k") is None


def test_it_is_gone_afterwards() -> None:
    with RedisServer() as server:
        pid = server.pid
        server.start()
        assert server.pid == pid
        folder = Path(server._folder.name)
        assert folder.exists()
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_missing_server_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install nothing"):
        require("no-such-server", "apt-get install nothing")
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install nothing"):
        require("no-such-server", "apt-get install nothing")
