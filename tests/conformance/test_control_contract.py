"""What remote control needs of a broker: reply boxes, what one consumer holds, and queues that change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from umbel import Umbel
from umbel.interfaces import Broker, Settlement
from umbel.message import Message


@pytest.fixture(params=["memory", "sqlite", "redis"])
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An app on each kind of broker."""
    name = request.node.name
    url = f"memory://{name}" if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")
    app = Umbel("control", broker=url, set_as_current=False)
    yield app
    app.close()


def test_a_reply_reaches_its_box_and_no_other(app: Any) -> None:
    pubsub = app.broker.pubsub()
    one, other = pubsub.replies("reply.celery.pidbox", "one"), pubsub.replies("reply.celery.pidbox", "other")
    pubsub.reply("reply.celery.pidbox", "one", Message(body=b"1", headers={"ticket": "t"}))
    pubsub.reply("reply.celery.pidbox", "one", Message(body=b"2"))
    pubsub.reply("reply.celery.pidbox", "nobody", Message(body=b"3"))
    first, second = one.receive(timeout=5), one.receive(timeout=5)
    assert first is not None and second is not None
    assert (first.body, first.headers["ticket"], second.body) == (b"1", "t", b"2")
    assert one.receive(timeout=0) is None and other.receive(timeout=0.01) is None
    one.close()
    other.close()


def test_what_one_consumer_holds(app: Any) -> None:
    broker: Broker = app.broker
    for number in range(3):
        app.send_task("add", (number,))
    leases = broker.leases()
    ids = [leases.register("w@h") for _ in range(2)]
    first, second = (broker.consumer(id, ["celery"]) for id in ids)
    taken = [*first.reserve(2), *second.reserve(1)]
    assert [set(broker.held(id)) for id in ids] == [{taken[0].tag, taken[1].tag}, {taken[2].tag}]
    peeked = broker.held(ids[0])[taken[0].tag]
    assert (peeked.raw, peeked.queue) == (taken[0].raw, "celery")
    first.settle([Settlement(delivery=taken[0])])
    assert set(broker.held(ids[0])) == {taken[1].tag}
    assert broker.held("nobody") == {}
    for id, consumer in zip(ids, (first, second), strict=True):
        consumer.close()
        leases.release(id)
    assert broker.held(ids[0]) == {}
    leases.close()


def test_a_consumer_turns_to_other_queues(app: Any) -> None:
    broker: Broker = app.broker
    app.send_task("a", queue="one")
    app.send_task("b", queue="one")
    app.send_task("c", queue="two")
    leases = broker.leases()
    id = leases.register("w@h")
    consumer = broker.consumer(id, ["one"])
    (held,) = consumer.reserve(1)
    consumer.watch(["two"])
    # What was there before is seen, also by one that waits.
    assert consumer.wait(5.0)
    (other,) = consumer.reserve(10)
    assert (held.queue, other.queue) == ("one", "two")
    # What it held is still its own.
    assert not consumer.settle([Settlement(delivery=held), Settlement(delivery=other)]).refused
    app.send_task("d", queue="one")
    assert consumer.reserve(10) == []
    consumer.watch(["two", "one"])
    assert sorted(each.queue for each in consumer.reserve(10)) == ["one", "one"]
    consumer.close()
    leases.release(id)
    leases.close()


def test_nothing_of_a_reply_stays_in_redis(redis_url: str) -> None:
    import redis

    app = Umbel("control", broker=redis_url, set_as_current=False)
    pubsub = app.broker.pubsub()
    box = pubsub.replies("reply.celery.pidbox", "one")
    pubsub.reply("reply.celery.pidbox", "one", Message(body=b"1"))
    pubsub.reply("reply.celery.pidbox", "gone", Message(body=b"1"))
    box.close()
    app.close()
    with redis.Redis.from_url(redis_url) as client:
        keys = {key.decode(): client.pttl(key) for key in client.keys("*")}
    late = keys.pop("gone.reply.celery.pidbox")
    assert 0 < late <= 10_000
    # What kombu sweeps by itself.
    assert set(keys) <= {"_kombu.binding_deadlines"}
