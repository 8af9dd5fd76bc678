"""A dashboard for tests: served in a thread of this process, asked over a real connection."""

from __future__ import annotations

import http.client
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

from umbel.dashboard.access import Access
from umbel.dashboard.serving import Server, make_server


class Answer:
    """What the dashboard said."""

    def __init__(self, reply: http.client.HTTPResponse) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.text = reply.read().decode()

    @property
    def token(self) -> str:
        """What the forms of this page carry."""
        found = re.search(r'name="token" value="([0-9a-f]+)"', self.text)
        assert found is not None, self.text
        return found[1]


class Visitor:
    """Somebody who asks; keeps cookies as a browser does."""

    def __init__(self, url: str, **headers: str) -> None:
        parts = urlsplit(url)
        self.place = (parts.hostname or "", parts.port or 80)
        self.root = parts.path.rstrip("/")
        self.host = parts.netloc
        self.headers = {"accept": "text/html", **headers}
        self.cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str | None) -> Answer:
        """Send a request; headers given as None are left out."""
        sent: dict[str, str | None] = {"host": self.host, **self.headers}
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        link = http.client.HTTPConnection(*self.place, timeout=20)
        try:
            link.putrequest(method, self.root + path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    link.putheader(name, value)
            if body is not None:
                link.putheader("content-length", str(len(body)))
            link.endheaders(body)
            answer = Answer(link.getresponse())
        finally:
            link.close()
        for line in answer.headers.get_all("set-cookie") or ():
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value
        return answer

    def get(self, path: str, **headers: str | None) -> Answer:
        """Open a page."""
        return self.ask("GET", path, **headers)

    def post(self, path: str, form: Mapping[str, Any] | None = None, **headers: str | None) -> Answer:
        """Send a form as a browser does from one of our pages; the token must be in it."""
        given = {"content_type": "application/x-www-form-urlencoded", "sec_fetch_site": "same-origin", **headers}
        return self.ask("POST", path, urlencode(form or {}, doseq=True).encode(), **given)

    def sign_in(self, name: str, password: str) -> Answer:
        """Fill in the sign-in page."""
        page = self.get("/login")
        return self.post("/login", {"token": page.token, "name": name, "password": password})


@contextmanager
def served(app: Any, access: Access | None = None, **options: Any) -> Iterator[Server]:
    """Serve the dashboard of an app while the block runs."""
    with tempfile.TemporaryDirectory(prefix="umbel-history-") as folder:
        # Not in the user's own folder of state.
        app.conf.history_file = app.conf.history_file or f"{folder}/history.db"
        yield from _served(app, access, **options)


def _served(app: Any, access: Access | None, **options: Any) -> Iterator[Server]:
    server = make_server(app, access or Access(hosts=()), name="shop", **options)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.url:
        assert thread.is_alive() and time.monotonic() < deadline, "the dashboard did not start"
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
