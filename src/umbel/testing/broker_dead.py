"""The broker suite, part 3: deliveries that crash, what is noted about them, and dead letters."""

from __future__ import annotations

import threading
from collections.abc import Collection

from umbel.interfaces import (
    Begin,
    Broker,
    Consumer,
    Dead,
    Delivery,
    Leases,
    Peeked,
    Place,
    Requeue,
    Verdict,
    VerdictKind,
)
from umbel.testing.broker_base import BrokerBase, bodies, body, needs, until


class CrashTests(BrokerBase):
    """A delivery that crashes is counted, noted, and not repeated faster and faster."""

    def crash(self, broker: Broker, leases: Leases, cause: str = "signal 9 (SIGKILL)") -> Delivery | None:
        """Take one message and have its process die of it; return what was taken, or None if nothing was due."""
        id, consumer = self.member(broker, leases, "q")
        taken = self.take(consumer)
        leases.release(id, started=[held.tag for held in taken], cause=cause)
        return taken[0] if taken else None

    @needs(schedule=True)
    def test_redeliveries_wait_longer_and_longer(self) -> None:
        broker = self.open(max_deliveries=None, redelivery_backoff=(1, 5))
        leases = self.leases(broker)
        self.send(broker, b"poison")
        for number, pause in enumerate((0, 1, 5, 5), 1):
            held = self.crash(broker, leases)
            assert held is not None and held.count == number
            if pause:
                self.clock.advance(pause - 0.1)
                assert (broker.size("q"), broker.size("q", Place.SCHEDULED)) == (0, 1)
                assert self.crash(broker, leases) is None
                self.clock.advance(0.1)

    @needs(schedule=True)
    def test_the_good_do_not_wait_for_the_poison(self) -> None:
        broker = self.open(max_deliveries=5, redelivery_backoff=(60,))
        leases = self.leases(broker)
        self.send(broker, b"poison", b"good")
        assert self.crash(broker, leases) is not None
        assert self.crash(broker, leases) is not None
        assert self.drain(broker, "q") == [b"good"]

    def test_no_pauses_at_all(self) -> None:
        broker = self.open(max_deliveries=3, redelivery_backoff=(0,))
        leases = self.leases(broker)
        self.send(broker, b"x")
        counts = [held.count for _ in range(3) if (held := self.crash(broker, leases))]
        assert counts == [1, 2, 3]

    @needs(ends=True)
    def test_every_crash_is_told_by_the_dead_letter(self) -> None:
        broker = self.open(max_deliveries=3, redelivery_backoff=(0,))
        leases = self.leases(broker)
        self.send(broker, b"x")
        moments = []
        for cause in ("signal 9 (SIGKILL)", "", "exit code 3\n of\ttask\0s"):
            moments.append(self.clock.now())
            assert self.crash(broker, leases, cause) is not None
            self.clock.advance(2)
        consumer = self.consumer(broker)
        (ended,) = self.take(consumer)
        assert ended.verdict is not None and ended.verdict.kind is VerdictKind.MAX_DELIVERIES
        self.end(consumer, ended, how=Dead("max_deliveries", "too often"))
        (letter,) = broker.dead().page("q")
        assert [" ".join(crash.cause.replace("\0", " ").split()) for crash in letter.crashes] == [
            "signal 9 (SIGKILL)",
            "",
            "exit code 3 of task s",
        ]
        assert all(crash.consumer.startswith("node") for crash in letter.crashes)
        assert len({crash.consumer for crash in letter.crashes}) == 3
        assert all(
            abs((crash.at - moment).total_seconds()) < 0.002
            for crash, moment in zip(letter.crashes, moments, strict=True)
        )

    @needs(lease={"clock"})
    def test_a_lost_worker_is_noted_too(self, broker: Broker) -> None:
        self.send(broker, b"x")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        self.take(consumer)
        assert leases.reap(self.expired(leases, id)).moved == 1
        consumer = self.consumer(broker)
        self.end(consumer, *self.take(consumer), how=Dead("rejected"))
        (letter,) = broker.dead().page("q")
        assert [(crash.consumer, crash.cause) for crash in letter.crashes] == [(id, "its worker was lost")]

    def test_what_ends_well_leaves_no_log_to_an_equal_message(self) -> None:
        broker = self.open(redelivery_backoff=(0,))
        leases = self.leases(broker)
        (first,) = self.send(broker, b"x")
        assert self.crash(broker, leases) is not None
        consumer = self.consumer(broker)
        self.end(consumer, *self.take(consumer))
        same = self.open(publish_dedupe=0)
        same.publish([first])
        (again,) = self.take(consumer)
        assert again.count == 1
        self.end(consumer, again, how=Dead("rejected"))
        (letter,) = broker.dead().page("q")
        assert list(letter.crashes) == []

    @needs(ends=True)
    def test_a_crash_while_it_ends_counts_and_keeps_the_verdict(self, broker: Broker) -> None:
        self.send(broker, b"x")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        (held,) = self.take(consumer)
        leases.release(id, verdicts={held.tag: Verdict(kind=VerdictKind.TIME_LIMIT, detail="3 s")})
        counts = []
        for _ in range(3):
            ended = self.crash(broker, leases)
            assert ended is not None and ended.verdict is not None
            assert ended.verdict.kind is VerdictKind.TIME_LIMIT
            counts.append(ended.count)
        assert counts == [counts[0], counts[0] + 1, counts[0] + 2]
        # And so it does when that process is ended with a verdict of its own.
        id, consumer = self.member(broker, leases)
        (held,) = self.take(consumer)
        leases.release(id, verdicts={held.tag: Verdict(kind=VerdictKind.LOST)})
        (ended,) = self.take(self.consumer(broker))
        assert ended.count == held.count + 1 and ended.verdict == held.verdict

    @needs(ends=True)
    def test_what_must_run_once_is_noted_when_it_is_lost(self, broker: Broker) -> None:
        self.send(broker, b"once")
        leases = self.leases(broker)
        id, consumer = self.member(broker, leases)
        (held,) = self.take(consumer)
        consumer.begin([Begin(delivery=held, once=True)])
        leases.release(id, started=[held.tag], cause="signal 11 (SIGSEGV)")
        consumer = self.consumer(broker)
        (ended,) = self.take(consumer)
        assert ended.verdict is not None and ended.verdict.kind is VerdictKind.LOST
        self.end(consumer, ended, how=Dead("lost"))
        (letter,) = broker.dead().page("q")
        assert [crash.cause for crash in letter.crashes] == ["signal 11 (SIGSEGV)"]


class DeadLetterTests(BrokerBase):
    """Dead letters can be read, moved back and deleted, one by one, and each is in one place only."""

    def bury(self, broker: Broker, *contents: bytes, queue: str = "q", **options: int) -> list[Peeked]:
        """Make dead letters of these bodies and return them, the latest first."""
        self.send(broker, *contents, queue=queue, **options)
        consumer = self.consumer(broker, queue)
        for held in self.take(consumer, len(contents)):
            self.end(consumer, held, how=Dead("rejected", "no 'good'", "Traceback:\n  line\n"))
        return list(broker.dead().page(queue))

    def test_a_letter_says_what_and_why(self, broker: Broker) -> None:
        (letter,) = self.bury(broker, b"x")
        assert (body(letter), letter.queue, letter.reason) == (b"x", "q", "rejected")
        assert (letter.detail, letter.traceback) == ("no 'good'", "Traceback:\n  line\n")
        assert letter.at is not None and abs((letter.at - self.clock.now()).total_seconds()) < 0.002
        assert letter.key

    def test_the_latest_come_first_in_pages(self, broker: Broker) -> None:
        contents = [b"%02d" % number for number in range(12)]
        self.bury(broker, *contents)
        dead = broker.dead()
        seen: list[Peeked] = []
        while page := dead.page("q", before=seen[-1].key if seen else "", limit=5):
            assert len(page) <= 5
            seen.extend(page)
        assert bodies(seen) == contents[::-1]
        assert len({letter.key for letter in seen}) == 12
        assert bodies(broker.peek("q", place=Place.DEAD, limit=3)) == contents[:-4:-1]
        assert list(dead.page("q", limit=0)) == []

    def test_queues_are_those_that_have_letters(self, broker: Broker) -> None:
        dead = broker.dead()
        assert list(dead.queues()) == []
        (letter,) = self.bury(broker, b"x", queue="r")
        self.bury(broker, b"y", queue="elsewhere")
        assert list(dead.queues()) == ["elsewhere", "r"]
        dead.revive("r", {letter.key: None})
        broker.purge("elsewhere", Place.DEAD)
        assert list(dead.queues()) == []

    def test_revive_moves_to_the_tail_and_starts_anew(self) -> None:
        broker = self.open(max_deliveries=2, redelivery_backoff=(0,))
        self.send(broker, b"poison")
        consumer = self.consumer(broker)
        for _ in range(2):
            (held,) = self.take(consumer)
            self.end(consumer, held, how=Requeue(counted=True))
        (ended,) = self.take(consumer)
        self.end(consumer, ended, how=Dead("max_deliveries"))
        self.send(broker, b"other")
        (letter,) = broker.dead().page("q")
        assert list(broker.dead().revive("q", {letter.key: None})) == [letter.key]
        assert (broker.size("q"), broker.size("q", Place.DEAD)) == (2, 0)
        first, again = self.take(consumer, 2)
        assert bodies([first, again]) == [b"other", b"poison"]
        assert (again.raw, again.count, again.verdict, again.redelivered) == (held.raw, 1, None, False)
        # A new life has as many deliveries as the first had, and no memory of them.
        self.end(consumer, again, how=Dead("rejected"))
        (letter,) = broker.dead().page("q")
        assert list(letter.crashes) == []

    def test_revive_is_no_repeated_publish(self, broker: Broker) -> None:
        (letter,) = self.bury(broker, b"x")
        assert broker.dead().revive("q", {letter.key: None})
        assert self.drain(broker) == [b"x"]

    @needs(priorities=range(2, 256))
    def test_revive_keeps_the_priority(self, broker: Broker) -> None:
        (letter,) = self.bury(broker, b"low", priority=9)
        broker.dead().revive("q", {letter.key: None})
        self.send(broker, b"high", priority=0)
        assert self.drain(broker, "q") == [b"high", b"low"]

    def test_revive_with_other_bytes(self, broker: Broker) -> None:
        first, second = self.bury(broker, b"1", b"2")
        other = self.bury(broker, b"changed", queue="r")[0].raw
        broker.dead().revive("q", {second.key: other, first.key: None})
        assert self.drain(broker, "q") == [b"changed", b"2"]

    def test_revive_into_another_queue(self, broker: Broker) -> None:
        second, first = self.bury(broker, b"1", b"2")
        consumer: Consumer = self.consumer(broker, "r")
        assert list(broker.dead().revive("q", {first.key: None, second.key: None}, to="r")) == [first.key, second.key]
        assert [broker.size("q", place) for place in Place] == [0, 0, 0, 0]
        until(lambda: broker.size("r") == 2)
        taken = self.take(consumer, 2)
        assert bodies(taken) == [b"1", b"2"] and {each.queue for each in taken} == {"r"}
        # It dies and lives there from now on.
        self.end(consumer, *taken, how=Dead("rejected"))
        assert (broker.size("q", Place.DEAD), broker.size("r", Place.DEAD)) == (0, 2)

    def test_revive_some_of_many(self, broker: Broker) -> None:
        letters = self.bury(broker, b"1", b"2", b"3", b"4")
        wanted = {letters[2].key: None, letters[0].key: None}
        assert set(broker.dead().revive("q", wanted)) == set(wanted)
        assert bodies(broker.dead().page("q")) == [b"3", b"1"]
        assert self.drain(broker, "q") == [b"2", b"4"]

    def test_only_what_is_there_is_moved_or_deleted(self, broker: Broker) -> None:
        (letter,) = self.bury(broker, b"x")
        dead = broker.dead()
        keys = ["999999999", "nothing", "-1", "", letter.key * 9]
        assert list(dead.revive("q", dict.fromkeys(keys))) == []
        assert list(dead.discard("q", keys)) == []
        assert list(dead.revive("r", {letter.key: None})) == []
        assert list(dead.discard("r", [letter.key])) == []
        assert list(dead.revive("q", {})) == []
        assert list(dead.page("nowhere")) == []
        assert list(dead.discard("q", [letter.key, letter.key])) == [letter.key]
        assert list(dead.revive("q", {letter.key: None})) == []
        assert [broker.size("q", place) for place in Place] == [0, 0, 0, 0]

    def test_discard_forgets_the_message(self, broker: Broker) -> None:
        first, second = self.bury(broker, b"1", b"2")
        assert list(broker.dead().discard("q", [second.key])) == [second.key]
        assert [letter.key for letter in broker.dead().page("q")] == [first.key]
        assert self.drain(broker) == []

    def test_a_key_is_never_used_again(self, broker: Broker) -> None:
        (first,) = self.bury(broker, b"1")
        broker.dead().discard("q", [first.key])
        (second,) = self.bury(broker, b"2")
        assert second.key != first.key

    def test_two_who_revive_and_discard_share_the_letters(self, broker: Broker) -> None:
        contents = [b"%02d" % number for number in range(40)]
        letters = self.bury(broker, *contents)
        dead = broker.dead()
        answers: list[list[str]] = [[], [], []]

        def work(index: int) -> None:
            for letter in letters:
                done: Collection[str]
                done = dead.discard("q", [letter.key]) if index == 2 else dead.revive("q", {letter.key: None})
                answers[index].extend(done)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        moved = answers[0] + answers[1]
        assert sorted(moved + answers[2]) == sorted(letter.key for letter in letters)
        assert broker.size("q", Place.DEAD) == 0
        assert sorted(self.drain(broker, "q")) == sorted(body(letter) for letter in letters if letter.key in moved)

    def test_a_waiting_consumer_hears_of_it(self, broker: Broker) -> None:
        (letter,) = self.bury(broker, b"x")
        consumer: Consumer = self.consumer(broker, "q")
        assert list(consumer.reserve(1)) == []
        woken: list[bool] = []
        waiting = threading.Thread(target=lambda: woken.append(consumer.wait(10.0)))
        waiting.start()
        broker.dead().revive("q", {letter.key: None})
        waiting.join(10.0)
        assert woken == [True]
        until(lambda: bodies(consumer.reserve(1)) == [b"x"])
