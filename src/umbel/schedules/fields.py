"""One field of a crontab: ``*``, ``*/15``, ``1-5``, ``22-4/2``, ``mon,wed``, ``jan-mar``, and lists of these.

A range whose end comes before its start goes on at the beginning: ``22-4`` are the hours 22, 23, 0, 1, 2, 3 and 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from umbel.utils.time import weekday, yearmonth

Cronspec = int | str | Iterable[int]

_PART: Final = re.compile(
    r"(?P<all>\*)(?:/(?P<each>\w*))?|(?P<low>\w+)(?:-(?P<high>\w+))?(?:/(?P<every>\w*))?", re.ASCII
)
#: The longest field that is read: all minutes one by one are 169 characters.
_LONGEST: Final = 1000


class ParseException(Exception):
    """Raised for a field of a crontab that cannot be read."""


class crontab_parser:
    """Reads fields whose values are ``min_`` to ``min_ + max_ - 1``."""

    ParseException = ParseException

    def __init__(self, max_: int = 60, min_: int = 0) -> None:
        self.max_ = max_
        self.min_ = min_

    def parse(self, spec: str) -> set[int]:
        """Return the values that a field means.

        Raises :exc:`ParseException` for what is not a field, and :exc:`ValueError` for a value out of range.
        """
        if len(spec) > _LONGEST:
            raise ParseException(f"a field of a crontab has at most {_LONGEST} characters, and not {len(spec)}")
        return {value for part in spec.split(",") for value in self._part(part.strip(), spec)}

    def _part(self, part: str, spec: str) -> list[int]:
        if not part:
            raise ParseException(f"empty part in {spec!r}")
        if part.startswith("-"):
            raise ParseException(f"negative numbers not supported: {spec!r}")
        match = _PART.fullmatch(part)
        if match is None:
            raise ParseException(
                f"{part!r} in {spec!r} is neither *, a value nor a range, as in */15, 3, 1-5 or 8-18/2"
            )
        if match["all"]:
            return self._filtered(self._from(self.min_, self.min_ + self.max_ - 1), match["each"], spec)
        low = self._number(match["low"])
        if match["high"] is None:
            if match["every"] is not None:
                raise ParseException(f"{part!r} in {spec!r}: /{match['every']} needs a range or * before it")
            return [low]
        return self._filtered(self._from(low, self._number(match["high"])), match["every"], spec)

    def _from(self, low: int, high: int) -> list[int]:
        if low <= high:
            return list(range(low, high + 1))
        return [*range(low, self.min_ + self.max_), *range(self.min_, high + 1)]

    @staticmethod
    def _filtered(values: list[int], every: str | None, spec: str) -> list[int]:
        if every is None:
            return values
        if not every:
            raise ParseException(f"empty filter in {spec!r}")
        if not every.isdecimal() or int(every) == 0:
            raise ParseException(f"/{every} in {spec!r} is not a number above 0")
        return values[:: int(every)]

    def _number(self, text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = self._named(text)
        highest = self.min_ + self.max_ - 1
        if number > highest:
            raise ValueError(f"Invalid end range: {number} > {highest}.")
        if number < self.min_:
            raise ValueError(f"Invalid beginning range: {number} < {self.min_}.")
        return number

    def _named(self, text: str) -> int:
        try:
            return yearmonth(text)
        except KeyError:
            pass
        try:
            return weekday(text)
        except KeyError:
            raise ValueError(f"Invalid weekday literal {text!r}.") from None


def expand(spec: Any, max_: int, min_: int = 0) -> set[int]:
    """Return the values of a field that is a number, a text or an iterable of numbers.

    Raises :exc:`TypeError` for anything else, :exc:`ParseException` and :exc:`ValueError`.
    """
    if isinstance(spec, str):
        return crontab_parser(max_, min_).parse(spec)
    if isinstance(spec, int):
        found = {spec}
    elif isinstance(spec, Iterable):
        found = set(spec)
    else:
        raise TypeError(f"a field of a crontab is an int, a str or an iterable of ints, and not {type(spec)!r}")
    for number in found:
        if not isinstance(number, int):
            raise TypeError(f"a field of a crontab has ints, and not {number!r}")
        if not min_ <= number < min_ + max_:
            raise ValueError(
                f"Invalid crontab pattern.  Valid range is {min_}-{min_ + max_ - 1}. '{number}' was found."
            )
    if not found:
        raise ValueError("a field of a crontab has at least one value")
    return found
