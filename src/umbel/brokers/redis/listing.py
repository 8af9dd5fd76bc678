"""Which queues of a server have messages.

Nothing on the server lists the queues: a sender makes one by naming it. So the keys are looked through page by page. A
list is a queue's if its oldest or latest entry is the message of a task; other programs may have lists there too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from umbel.brokers.redis.client import Source
from umbel.brokers.redis.layout import Layout
from umbel.brokers.redis.link import Link, LinkPool
from umbel.clock import SYSTEM_CLOCK
from umbel.exceptions import CeleryError
from umbel.message import decode_envelope, read_headers

_PAGE: Final = 500


def queues(url: str, options: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the queues that have messages ready, scheduled or held by Umbel's workers, sorted.

    Raises :exc:`OperationalError`.
    """
    layout = Layout(options, SYSTEM_CLOCK)
    pool = LinkPool(Source(url, options))
    pool.open()
    try:
        with pool.link() as link:
            return sorted({*_ready(link, layout), *_scheduled(link, layout), *_held(link, layout)})
    finally:
        pool.close()


def _ready(link: Link, layout: Layout) -> Iterator[str]:
    for page in _keys(link, layout.prefix):
        own = [key for key in page if not key.startswith(layout.namespace)]
        types = link.pipeline([("TYPE", key) for key in own])
        lists = [key for key, kind in zip(own, types, strict=True) if kind in (b"list", "list")]
        ends = link.pipeline([("LINDEX", key, end) for key in lists for end in (0, -1)])
        for at, key in enumerate(lists):
            if any(raw is not None and _is_task(raw) for raw in ends[2 * at : 2 * at + 2]):
                yield _queue(key.removeprefix(layout.prefix), layout)


def _queue(key: str, layout: Layout) -> str:
    name, separator, step = key.rpartition(layout.separator)
    return name if separator and step in layout.step_names else key


def _is_task(raw: bytes) -> bool:
    try:
        read_headers(decode_envelope(raw))
    except CeleryError:
        return False
    return True


def _scheduled(link: Link, layout: Layout) -> Iterator[str]:
    start = layout.key("delayed:")
    for page in _keys(link, start):
        yield from (key.removeprefix(start) for key in page)


def _held(link: Link, layout: Layout) -> Iterator[str]:
    for id in link.call("ZRANGE", layout.key("widx"), 0, -1):
        for value in link.call("HVALS", layout.key(f"inf:{id.decode()}")):
            yield value.partition(b"\0")[0].decode()


def _keys(link: Link, start: str) -> Iterator[list[str]]:
    pattern = "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in start) + "*"
    cursor: Any = b"0"
    while True:
        cursor, keys = link.call("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE)
        # A key of another program need not be text.
        yield [key.decode() for key in keys if _is_text(key)]
        if int(cursor) == 0:
            return


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
