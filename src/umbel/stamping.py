"""Stamps: headers that a whole canvas gets, by which its tasks can be recognised and revoked.

A stamp is an option of each signature, named in its ``stamped_headers``; on the wire the names travel in the header of
that name, and the values in ``stamps``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

Stamps = dict[str, Any]


class StampingVisitor(ABC):
    """Says what each part of a canvas is stamped with. Every method returns the stamps of that part, or nothing.

    ``headers`` are the stamps that the part gets from what it is in. Return ``stamped_headers`` too to have only some
    of the returned keys become stamps.
    """

    @abstractmethod
    def on_signature(self, sig: Any, **headers: Any) -> Stamps:
        """Return the stamps of one task."""

    def on_group_start(self, group: Any, **headers: Any) -> Stamps:
        """Return the stamps of all tasks of a group."""
        return {}

    def on_group_end(self, group: Any, **headers: Any) -> None:  # noqa: B027  # nothing unless overridden
        """Called when the tasks of the group are stamped."""

    def on_chain_start(self, chain: Any, **headers: Any) -> Stamps:
        """Return the stamps of all tasks of a chain."""
        return {}

    def on_chain_end(self, chain: Any, **headers: Any) -> None:  # noqa: B027  # nothing unless overridden
        """Called when the tasks of the chain are stamped."""

    def on_chord_header_start(self, sig: Any, **headers: Any) -> Stamps:
        """Return the stamps of all members of the chord ``sig``; unless overridden, those of a group."""
        return self.on_group_start(sig.header_group(), **headers)

    def on_chord_header_end(self, sig: Any, **headers: Any) -> None:
        """Called when the members are stamped."""
        self.on_group_end(sig.tasks, **headers)

    def on_chord_body(self, sig: Any, **headers: Any) -> Stamps:
        """Return the stamps of the body of the chord ``sig``."""
        return {}

    def on_callback(self, callback: Any, **headers: Any) -> Stamps:
        """Return the stamps of a callback."""
        return {}

    def on_errback(self, errback: Any, **headers: Any) -> Stamps:
        """Return the stamps of an errback."""
        return {}


def collected(given: Mapping[str, Any], seen: Stamps | None, own: Mapping[str, Any] | None, append: bool) -> Stamps:
    """Return the stamps of one part of a canvas, with their names under ``stamped_headers``.

    :param given: what it gets from what it is in.
    :param seen: what the visitor returned for it, or None without a visitor.
    :param own: the options of the signature, whose stamps stay.
    :param append: whether different values of one stamp become a list; else the first one stays.
    """
    stamps = dict(given)
    stamps.setdefault("stamped_headers", list(given))
    if seen is not None:
        seen.setdefault("stamped_headers", list(seen))
        _merge(stamps, seen, append)
    if own is not None:
        names = _distinct([*stamps["stamped_headers"], *(own.get("stamped_headers") or ())])
        stamps["stamped_headers"] = names
        _merge(stamps, {key: value for key, value in own.items() if key in names}, append)
    stamps["stamped_headers"] = _distinct(stamps["stamped_headers"])
    return stamps


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _merge(into: Stamps, more: Mapping[str, Any], append: bool) -> None:
    for key, value in more.items():
        if key not in into:
            into[key] = value
            continue
        present = into[key]
        if isinstance(present, dict):
            _merge(present, value, append)
        elif isinstance(present, list) and isinstance(value, list):
            into[key] = [*present, *value]
        elif append:
            kept = [] if present is None else [present] if isinstance(present, int | float | str) else list(present)
            into[key] = [*kept, *value] if isinstance(value, list) else [*kept, value]


def stamp_links(sig: Any, visitor: StampingVisitor | None, append: bool, headers: Mapping[str, Any]) -> None:
    """Stamp the callbacks and errbacks of a signature, which become signatures in place where they are dicts."""
    for option, ask in (("link", "on_callback"), ("link_error", "on_errback")):
        links = sig.options.get(option)
        if not links:
            continue
        found = [sig.from_dict(each, app=sig.app) if type(each) is dict else each for each in _listed(links)]
        sig.options[option] = found
        stamps: Stamps = deepcopy(dict(headers))
        for link in found:
            seen = None if visitor is None else getattr(visitor, ask)(link, **stamps) or {}
            stamps = collected(stamps, seen, None, append)
            link.stamp(visitor, append, **stamps)


def _listed(links: Any) -> list[Any]:
    return list(links) if isinstance(links, list | tuple) else [links]
