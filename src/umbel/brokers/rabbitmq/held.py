"""What a consumer knows of a message that it holds."""

from __future__ import annotations

import msgspec

from umbel.message import Message


class Held(msgspec.Struct):
    """A message between its delivery and its end."""

    tag: str  # the delivery's
    number: int  # the server's delivery tag, of one connection
    queue: str
    message: Message
    count: int
    priority: int
    note: str = ""  # the key under which deliveries of it were noted; empty if it came for the first time
    acked: bool = False  # never to be delivered again, whatever happens
    concluded: bool = False  # what follows from it is published; its own end is all that is left
