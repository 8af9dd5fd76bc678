"""Serving the dashboard by itself, with uvicorn."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from umbel.dashboard.access import Access
from umbel.dashboard.site import Site


class Server(uvicorn.Server):
    """Serves one dashboard. :meth:`run` blocks until interrupted, or until ``should_exit`` is set from anywhere.

    Outside of the main thread it heeds no signals. The streams end before it waits for the connections to close.
    """

    def __init__(self, config: uvicorn.Config, site: Site, prefix: str, ready: Callable[[str], object] | None) -> None:
        super().__init__(config)
        self.site = site
        self.url = ""
        self._prefix = prefix
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, and say so."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self.url = f"{'https' if self.config.is_ssl else 'http'}://{place}{self._prefix}/"
            if self._ready is not None:
                self._ready(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close."""
        self.site.streams.close()
        await super().shutdown(sockets)


def make_server(
    app: Any,
    access: Access,
    *,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    prefix: str = "",
    certfile: str | None = None,
    keyfile: str | None = None,
    ready: Callable[[str], object] | None = None,
) -> Server:
    """Return the server of an app's dashboard; nothing is open yet. ``ready`` is called with the address once it is.

    A ``port`` of 0 is any that is free.
    """
    site = Site(app, access, name=name, prefix=prefix)
    config = uvicorn.Config(
        site,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        # What a proxy says of the client would be believed from anybody on this machine.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,
        limit_concurrency=500,
        ssl_certfile=certfile,
        ssl_keyfile=keyfile,
        ws="none",
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return Server(config, site, prefix, ready)


def serve(server: Server) -> bool:
    """Serve until interrupted or terminated, in the main thread; return whether it could."""

    def ended(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # uvicorn closes at a signal and then raises it once more, which would end the process before the rest is closed.
    before = signal.signal(signal.SIGTERM, ended)
    try:
        # uvicorn exits by itself where it cannot start, after it has said why.
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            server.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    return server.started
