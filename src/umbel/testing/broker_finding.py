"""The broker suite: looking for the message of one task."""

from __future__ import annotations

from datetime import timedelta

from umbel.interfaces import Broker, Dead, Park, Settlement
from umbel.testing.broker_base import BrokerBase, needs, outgoing


@needs(finds=True)
class FindTests(BrokerBase):
    """A message is found in whatever place it is, and looking moves nothing."""

    def test_an_id_that_nobody_sent_is_not_found(self, broker: Broker) -> None:
        self.send(broker, b"x")
        assert broker.find("nobody's", ("q",)) is None

    def test_it_says_how_many_go_before(self, broker: Broker) -> None:
        ids = [each.task_id for each in self.send(broker, *[b"x"] * 7)]
        for place, id in enumerate(ids, 1):
            found = broker.find(id, ("q", "r"))
            assert found is not None
            assert (found.place, found.position, found.of, found.seen.queue) == ("ready", place, 7, "q")
        assert broker.size("q") == 7

    def test_a_message_that_only_speaks_of_the_id_is_not_it(self, broker: Broker) -> None:
        broker.publish([outgoing(b"x", task_id="the-one-and-only")])
        assert broker.find("the-one", ("q",)) is None

    def test_an_id_may_be_any_text(self, broker: Broker) -> None:
        broker.publish([outgoing(b"x", task_id='úloha:1 {"x"}')])
        found = broker.find('úloha:1 {"x"}', ("q",))
        assert found is not None and found.place == "ready"

    @needs(schedule=True)
    def test_one_that_is_due_later(self, broker: Broker) -> None:
        due = self.clock.now() + timedelta(hours=1)
        broker.publish([outgoing(b"x", task_id="later", not_before=due)])
        found = broker.find("later", ("q",))
        assert found is not None and found.place == "scheduled"
        assert found.seen.at is not None and abs((found.seen.at - due).total_seconds()) < 0.01

    @needs(gates=True)
    def test_one_at_a_gate(self, broker: Broker) -> None:
        broker.publish([outgoing(b"x", task_id="first"), outgoing(b"x", task_id="gated", gate="the [*] gate")])
        found = broker.find("gated", ("q",))
        assert found is not None and (found.place, found.gate) == ("gate", "the [*] gate")
        consumer = self.consumer(broker)
        (held,) = self.take(consumer)
        consumer.settle([Settlement(delivery=held, how=Park("another"))])
        parked = broker.find("first", ("q",))
        assert parked is not None and (parked.place, parked.gate) == ("gate", "another")

    def test_one_that_is_held_and_by_whom(self, broker: Broker) -> None:
        broker.publish([outgoing(b"x", task_id="held")])
        consumer = self.consumer(broker)
        (delivery,) = self.take(consumer)
        found = broker.find("held", ("q",))
        assert found is not None and found.place == "held"
        assert found.node and found.consumer.startswith(found.node)
        self.end(consumer, delivery)
        assert broker.find("held", ("q",)) is None

    def test_a_dead_letter_and_its_reason(self, broker: Broker) -> None:
        broker.publish([outgoing(b"x", task_id="dead")])
        consumer = self.consumer(broker)
        (delivery,) = self.take(consumer)
        consumer.settle([Settlement(delivery=delivery, how=Dead("rejected", "it said so"))])
        found = broker.find("dead", ("q",))
        assert found is not None and found.place == "dead"
        assert (found.seen.reason, found.seen.detail, found.seen.queue) == ("rejected", "it said so", "q")
        assert found.seen.at is not None

    def test_what_is_alive_is_told_before_an_old_letter(self, broker: Broker) -> None:
        broker.publish([outgoing(b"x", task_id="twice")])
        consumer = self.consumer(broker)
        (delivery,) = self.take(consumer)
        again = outgoing(b"x", task_id="twice", attempt="1")
        consumer.settle([Settlement(delivery=delivery, how=Dead("rejected"), publish=(again,))])
        found = broker.find("twice", ("q",))
        assert found is not None and found.place == "ready"

    def test_crashed_deliveries_are_told(self, broker: Broker) -> None:
        broker.publish([outgoing(b"x", task_id="crashed")])
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases, "q")
        (delivery,) = self.take(consumer)
        leases.release(id, started=[delivery.tag], cause="signal 9 (SIGKILL)")
        found = broker.find("crashed", ("q",))
        assert found is not None and found.place == "ready"
        (crash,) = found.seen.crashes
        assert (crash.consumer, crash.cause) == (id, "signal 9 (SIGKILL)")

    def test_one_among_many_in_pages(self, broker: Broker) -> None:
        broker.publish([outgoing(b"x", task_id=f"id-{number}") for number in range(1234)])
        for number in (0, 499, 500, 999, 1233):
            found = broker.find(f"id-{number}", ("q",))
            assert found is not None and (found.position, found.of) == (number + 1, 1234)
