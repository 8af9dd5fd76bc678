"""What settle.lua is told about settlements: a tag, a letter for each thing to do, and their arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from umbel.brokers.redis.layout import Layout, Results, to_ms
from umbel.brokers.redis.link import Word
from umbel.exceptions import BrokerError
from umbel.interfaces import Ack, ChordPart, Dead, Delay, How, Park, ResultRecord, Settlement
from umbel.message import encode_envelope


def part_words(part: ChordPart) -> tuple[Word, Word, Word, Word, Word, Word]:
    """Return what the scripts are told about one part of a chord (see results.lua)."""
    index: Word = "+inf" if part.index is None else part.index
    seconds: Word = "" if part.expires is None else max(1, int(part.expires))
    return index, part.task_id, part.payload, seconds, "" if part.ordered else "list", part.note


class Settling:
    """Describes settlements of one consumer. Owned by its thread.

    It remembers which deliveries brought a chord's last part: their acknowledgement closes the chord.
    """

    __slots__ = ("_claims", "_keep_dead", "_layout", "_results")

    def __init__(self, layout: Layout, results: Results, keep_dead: int) -> None:
        self._layout = layout
        self._results = results
        self._keep_dead = keep_dead
        self._claims: dict[str, tuple[str, str]] = {}  # tag -> base key of the chord, claim token

    def forget(self) -> None:
        """Forget all claims: the consumer was taken over."""
        self._claims.clear()

    def claimed(self, batch: Sequence[Settlement], claims: Mapping[str, str]) -> None:
        """Note the claim tokens that the server answered."""
        for settlement in batch:
            tag = settlement.delivery.tag
            if settlement.chord is not None and tag in claims:
                self._claims[tag] = (self._results.group_key(settlement.chord.group_id), claims[tag])

    def describe(self, args: list[Word], settlement: Settlement) -> bool:
        """Append the arguments; return whether it puts a message where a reserve may find it."""
        delivery, result = settlement.delivery, settlement.result
        if (
            type(settlement.how) is Ack
            and delivery.count == 1
            and settlement.chord is None
            and not settlement.results
            and not settlement.publish
            and not settlement.frees
            and delivery.tag not in self._claims
        ):
            if result is None:
                args += (delivery.tag, "A")
            else:
                args += (delivery.tag, "AR", *self.record(result))
            return False
        return self._describe_special(args, settlement)

    def _describe_special(self, args: list[Word], settlement: Settlement) -> bool:
        delivery, result, chord = settlement.delivery, settlement.result, settlement.chord
        spec, words = self._how(settlement.how)
        if delivery.count > 1 and spec in ("A", "X"):
            spec += "N"
        if result is not None:
            spec += "R"
            words += self.record(result)
        if settlement.results:
            spec += "S"
            words.append(len(settlement.results))
            for each in settlement.results:
                words += self.record(each)
        claim = self._claims.get(delivery.tag)
        if chord is not None:
            if settlement.parts:
                spec += "E"
                words.append(len(settlement.parts))
                for part in settlement.parts:
                    words += self._part(part)
            spec += "C"
            words += self._part(chord)
        elif claim is not None and spec[0] == "A":
            spec += "L"
            words += claim
        if settlement.publish:
            spec += "M"
            words.append(len(settlement.publish))
            for outgoing in settlement.publish:
                words += self._layout.item(outgoing, encode_envelope(outgoing.message))
        if settlement.frees:
            spec += "F"
            words += (len(settlement.frees), *settlement.frees)
        args += (delivery.tag, spec, *words)
        return bool(settlement.publish or settlement.frees) or spec[0] != "A"

    def settled(self, tags: Sequence[str]) -> None:
        """Forget the claims of deliveries that are settled."""
        for tag in tags if self._claims else ():
            self._claims.pop(tag, None)

    def record(self, result: ResultRecord) -> tuple[Word, Word, Word, Word]:
        """Return the arguments that store a result."""
        if not self._results.bound:
            raise BrokerError("this broker does not hold the results: store them first (see Broker.bind_results)")
        ms: Word = "" if result.expires is None else max(1, int(result.expires * 1000))
        return f"{self._results.prefix}celery-task-meta-{result.task_id}", result.state, ms, result.payload

    def _part(self, chord: ChordPart) -> tuple[Word, ...]:
        if not self._results.bound:
            raise BrokerError("this broker does not hold chords: add the part first (see Broker.bind_results)")
        return self._results.group_key(chord.group_id), *part_words(chord)

    def _how(self, how: How) -> tuple[str, list[Word]]:
        if isinstance(how, Ack):
            return "A", []
        if isinstance(how, Delay):
            return "D", [to_ms(how.until)]
        if isinstance(how, Park):
            return "P", [how.gate]
        if isinstance(how, Dead):
            words: list[Word] = [text.replace("\0", "") for text in (how.reason, how.detail, how.traceback)]
            return "X", [*words, self._keep_dead, how.kept or b""]
        return ("Q" if how.counted else "q"), []
