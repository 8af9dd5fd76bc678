"""An object that stands for another one, looked up anew at every use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class Proxy:
    """Forwards everything to what the function returns now.

    ``isinstance`` sees the class of the target, so a proxy of a task passes as that task.
    """

    __slots__ = ("__dict__", "__lookup", "__weakref__")

    def __init__(self, lookup: Callable[[], Any], **attributes: Any) -> None:
        object.__setattr__(self, "_Proxy__lookup", lookup)
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def _get_current_object(self) -> Any:
        return object.__getattribute__(self, "_Proxy__lookup")()

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        return type(self._get_current_object())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get_current_object(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._get_current_object(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._get_current_object(), name)

    def __dir__(self) -> list[str]:
        return dir(self._get_current_object())

    def __repr__(self) -> str:
        return repr(self._get_current_object())

    def __bool__(self) -> bool:
        return bool(self._get_current_object())

    def __eq__(self, other: object) -> bool:
        return bool(self._get_current_object() == other)

    def __hash__(self) -> int:
        return hash(self._get_current_object())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._get_current_object()(*args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self._get_current_object()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._get_current_object())

    def __len__(self) -> int:
        return len(self._get_current_object())

    def __contains__(self, item: object) -> bool:
        return item in self._get_current_object()

    def __or__(self, other: Any) -> Any:
        return self._get_current_object() | other

    def __reduce__(self) -> Any:
        return self._get_current_object().__reduce__()
