"""Outcomes whose results live in another store than the messages: a batch of them is one round trip."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from umbel import Umbel
from umbel.backends.redis import RedisBackend
from umbel.interfaces import ResultRecord
from umbel.worker.inprocess import start_worker


def record(number: int) -> ResultRecord:
    return ResultRecord(task_id=f"t{number}", state="SUCCESS", payload=b"%d" % number, expires=60)


def test_a_server_that_has_forgotten_the_script(redis_url: str) -> None:
    backend = RedisBackend(redis_url)
    try:
        assert backend.store_all([record(number) for number in range(10)]) == 10
        with redis.Redis.from_url(redis_url) as client:
            client.script_flush()
        # Those that are there already stay as they are.
        assert backend.store_all([record(number) for number in range(5, 20)]) == 10
        assert len(backend.fetch([f"t{number}" for number in range(20)])) == 20
    finally:
        backend.close()


def test_a_batch_of_outcomes_is_one_call(rabbitmq_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = RedisBackend.store_all

    def counted(self: RedisBackend, records: Any) -> int:
        calls.append(len(records))
        return real(self, records)

    monkeypatch.setattr(RedisBackend, "store_all", counted)
    app = Umbel("many", broker=rabbitmq_url, backend=redis_url, set_as_current=False)
    app.conf.settle_window = 1.0

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    try:
        results = app.send_many([(add.name, (number, 1)) for number in range(300)])
        with start_worker(app):
            assert [result.get(timeout=20) for result in results] == list(range(1, 301))
    finally:
        app.close()
    assert sum(calls) > 200
    assert max(calls) > 10
