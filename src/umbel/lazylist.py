"""A list that is filled from an iterator as it is read, so that what a generator yields need not exist at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence
from types import GeneratorType
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class LazyList(MutableSequence[T], Generic[T]):
    """Reads the iterator as far as it must, once, and keeps what it read. Used by one thread at a time.

    Iterating reads one item at a time; ``len()``, comparing and changing read all of it. Deliberately no ``list``:
    encoders would look at what has been read so far and take it for the whole.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._read: list[T] = []
        self._rest: Iterator[T] | None = iter(items)

    def _more(self) -> bool:
        """Read one more; return whether there was one."""
        if self._rest is None:
            return False
        if not self._read and isinstance(self._rest, GeneratorType) and self._rest.gi_frame is None:
            # It would look empty, and nobody would miss what was to be sent.
            raise ValueError("this generator has been read by somebody else; make a new one for each canvas, or a list")
        try:
            self._read.append(next(self._rest))
        except StopIteration:
            self._rest = None
            return False
        return True

    def all(self) -> list[T]:
        """Return everything as a list, which is this one's own."""
        while self._more():
            pass
        return self._read

    def has(self, count: int) -> bool:
        """Say whether there are at least so many items, without reading more than that."""
        while len(self._read) < count:
            if not self._more():
                return False
        return True

    def __iter__(self) -> Iterator[T]:
        index = 0
        while index < len(self._read) or self._more():
            yield self._read[index]
            index += 1

    def __bool__(self) -> bool:
        return self.has(1)

    def __len__(self) -> int:
        return len(self.all())

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, int) and index >= 0 and self.has(index + 1):
            return self._read[index]
        return self.all()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.all()[index] = value

    def __delitem__(self, index: Any) -> None:
        del self.all()[index]

    def insert(self, index: int, value: T) -> None:
        """Insert before the index."""
        self.all().insert(index, value)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, list | tuple | LazyList) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __json__(self) -> list[T]:
        return self.all()

    def __reduce__(self) -> Any:
        return list, (self.all(),)

    def __deepcopy__(self, memo: Any) -> list[T]:
        return list(self.all())

    def __repr__(self) -> str:
        items = [repr(item) for item in self._read]
        return f"[{', '.join(items if self._rest is None else [*items, '...'])}]"
