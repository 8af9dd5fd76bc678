"""The HTTP side of ``umbel metrics serve``."""

from __future__ import annotations

import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from umbel.exceptions import ImproperlyConfigured

_INDEX = b"/metrics for Prometheus, /api/v1/scale?queue=NAME for KEDA, /livez and /readyz for probes\n"


class Source(Protocol):
    """What is served: :class:`umbel.metrics.exporter.Exporter`."""

    @property
    def ready(self) -> bool:
        """Whether events are heard."""

    def page(self, accept: str = "") -> tuple[str, bytes]:
        """Return the content type and the metrics."""

    def scale(self, query: Any) -> dict[str, Any] | None:
        """Return the numbers for an autoscaler."""


def make_server(source: Source, host: str, port: int) -> ThreadingHTTPServer:
    """Return the server, bound and not yet serving. Raises :exc:`ImproperlyConfigured` if the port cannot be had."""

    class Handler(BaseHTTPRequestHandler):
        server_version = "umbel"
        sys_version = ""
        timeout = 5.0

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path == "/metrics":
                self._answer(200, *source.page(self.headers.get("Accept", "")))
            elif url.path == "/api/v1/scale":
                self._json(*_scale(source, url.query))
            elif url.path == "/livez":
                self._json(200, {"ok": True})
            elif url.path == "/readyz":
                self._json(200 if source.ready else 503, {"ok": source.ready})
            elif url.path == "/":
                self._answer(200, "text/plain", _INDEX)
            else:
                self._answer(404, "text/plain", _INDEX)

        def _json(self, status: int, value: Any) -> None:
            self._answer(status, "application/json", json.dumps(value).encode() + b"\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: scrapes come every few seconds."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        return Server((host, port), Handler)
    except OSError as error:
        raise ImproperlyConfigured(f"--host {host} --port {port}: {error.strerror or error}") from error


def _scale(source: Source, query: str) -> tuple[int, Any]:
    try:
        found = source.scale(parse_qs(query, keep_blank_values=True))
    except ValueError as error:
        return 400, {"error": {"code": "bad_query", "message": str(error)}}
    if found is None:
        # No number rather than a wrong one: an autoscaler keeps what it has.
        return 503, {"error": {"code": "broker_away", "message": "the broker cannot be reached"}}
    return 200, found
