"""How many dead letters a queue keeps on Redis, whatever their bytes are."""

from __future__ import annotations

import contextlib

import redis

from redis_support import consumer_of, opened
from umbel.interfaces import Dead, Place, Settlement


def test_the_oldest_letters_go_and_nothing_of_them_stays(redis_url: str) -> None:
    raws = [b"\x00\xff no envelope %d" % number for number in range(7)]
    with contextlib.ExitStack() as closing, redis.Redis.from_url(redis_url) as client:
        broker = opened(closing, redis_url, dead_letters=3)
        consumer, _, _ = consumer_of(closing, broker)
        for raw in raws:
            client.lpush("q", raw)
            (held,) = consumer.reserve(1)
            consumer.settle([Settlement(delivery=held, how=Dead("undecodable", "no JSON", ""))])
        assert [letter.raw for letter in broker.dead().page("q")] == raws[:3:-1]
        assert broker.size("q", Place.DEAD) == 3
        ours = [key for key in client.keys("*") if key.endswith((b"dead:q", b"letters:q"))]
        sizes = {client.hlen(key) if client.type(key) == b"hash" else client.zcard(key) for key in ours}
        assert len(ours) == 2 and sizes == {3}
