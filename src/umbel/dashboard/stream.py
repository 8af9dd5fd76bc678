"""Server-sent events: one small message a second to each browser that looks, made once for all of them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from umbel.dashboard.live import Live

#: The most browsers that are told at once; the others are told to ask again.
MOST: Final = 100
_EVERY: Final = 1.0
_PATIENCE: Final = 20.0  # seconds after which a browser that reads nothing is let go
_LONGEST: Final = 3600.0  # after which it connects anew, so that who may look is checked again


class Streams:
    """The open streams of one dashboard; used on the server's event loop."""

    def __init__(self, live: Live, *, most: int = MOST) -> None:
        self._live = live
        self._most = most
        self._closed = False
        self.open = 0
        self._body = b""
        self._made_at = float("-inf")

    async def stream(self, request: Request) -> Response:
        """Answer a request for the stream. 403 to other sites, 503 to one too many."""
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise HTTPException(403, "Other sites may not listen.")
        if self.open >= self._most or self._closed:
            raise HTTPException(503, f"{self.open} browsers are listening already.")
        return _Stream(self)

    def _told(self) -> bytes:
        """Return the message of now, made once for all browsers."""
        now = time.monotonic()
        if now - self._made_at >= _EVERY * 0.9:
            self._body = f"event: tick\ndata: {json.dumps(self._live.tick())}\n\n".encode()
            self._made_at = now
        return self._body

    def close(self) -> None:
        """End all streams within a second."""
        self._closed = True

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell one browser until it is gone. Nothing is queued for it: one that reads slowly misses some."""
        gone = asyncio.ensure_future(_gone(receive))
        until = time.monotonic() + _LONGEST
        self.open += 1
        try:
            while not self._closed and not gone.done() and time.monotonic() < until:
                body = self._told()
                async with asyncio.timeout(_PATIENCE):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.wait({gone}, timeout=_EVERY)
            if not gone.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):
            pass
        finally:
            self.open -= 1
            gone.cancel()


class _Stream(Response):
    media_type = "text/event-stream"

    def __init__(self, streams: Streams) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._streams.serve(scope, receive, send)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
