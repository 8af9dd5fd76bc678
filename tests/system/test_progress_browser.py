"""``<umbel-progress>`` in a real browser: served by Flask and by ASGI, under a strict policy, in both themes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
if shutil.which("chromedriver") is None and not os.environ.get("CI"):
    pytest.skip("chromedriver is missing: apt-get install chromium chromium-driver", allow_module_level=True)

import uvicorn
from flask import Flask, render_template_string
from selenium import webdriver
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from werkzeug.serving import WSGIRequestHandler, make_server

from support import copy_example, environment, eventually, worker
from umbel import Umbel
from umbel.contrib.progress.asgi import Progress as AsgiProgress
from umbel.contrib.progress.flask import Progress as FlaskProgress
from umbel.progress import as_meta
from umbel.testing.servers import free_port

pytestmark = pytest.mark.timeout(300)

SECRET = "a secret that is long enough"
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'"
PAGE = "<!doctype html><html lang=en><title>Progress</title><link rel=icon href=/progress/progress.js>{}{}</html>"
HOSTILE = "<img src=x onerror=window.hacked=1>"
#: What the element is now.
LOOK = """
const it = document.querySelector('umbel-progress'), bar = it.shadowRoot.querySelector('[role=progressbar]');
return {state: it.getAttribute('state'), now: bar.getAttribute('aria-valuenow'), label: bar.getAttribute('aria-label'),
  words: it.shadowRoot.querySelector('.text').textContent, told: bar.getAttribute('aria-valuetext'),
  said: it.shadowRoot.querySelector('[role=status]').textContent,
  share: it.shadowRoot.querySelector('.fill').getBoundingClientRect().width / bar.getBoundingClientRect().width,
  track: getComputedStyle(bar).backgroundColor};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=800,300",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Umbel]:
    app = Umbel("pages", broker=sqlite_url, backend=sqlite_url, set_as_current=False)

    @app.task(name="work")
    def work() -> None: ...

    yield app
    app.close()


class Quiet(WSGIRequestHandler):
    """Keeps the log of requests to itself, for the tests to read."""

    asked: list[str]

    def log_request(self, *args: Any) -> None:
        self.asked.append(f"{self.path.rpartition('/')[2] == 'events'} {args[0] if args else ''}")


@contextmanager
def flask_page(app: Umbel, *, streams: int = 0, max_age: float = 600) -> Iterator[tuple[str, list[str]]]:
    web = Flask("web")
    web.config["SECRET_KEY"] = SECRET
    FlaskProgress(web, app, streams=streams, max_age=max_age)

    @web.get("/")
    def page() -> str:
        return render_template_string(
            PAGE.format("{{ umbel_progress_script() }}", "{{ umbel_progress('t1', label='Pictures') }}")
        )

    @web.after_request
    def strict(response: Any) -> Any:
        response.headers["content-security-policy"] = POLICY
        return response

    handler = type("Handler", (Quiet,), {"asked": []})
    server = make_server("127.0.0.1", 0, web, threaded=True, request_handler=handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}/", handler.asked
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


class Strict:
    """Adds the policy to every answer, without holding streams up."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def add(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self._inner(scope, receive, add)


@contextmanager
def asgi_page(app: Umbel) -> Iterator[str]:
    progress = AsgiProgress(app, secret=SECRET)

    async def page(request: Any) -> HTMLResponse:
        return HTMLResponse(PAGE.format(progress.script(), progress.element("t1", label="Pictures")))

    web = Starlette(routes=[Route("/", page), Mount("/progress", progress)], middleware=[Middleware(Strict)])
    config = uvicorn.Config(web, port=0, log_config=None, ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(20)


def say(app: Umbel, done: int | None, text: str = "", state: str = "PROGRESS") -> None:
    meta: Any = as_meta(done, 8, text) if done is not None else None
    app.store_state(app.tasks["work"], "t1", state, meta, None)


def seen(browser: webdriver.Chrome) -> dict[str, Any]:
    eventually(lambda: browser.execute_script("return !!document.querySelector('umbel-progress')?.shadowRoot"))
    found: dict[str, Any] = browser.execute_script(LOOK)
    return found


def until(browser: webdriver.Chrome, check: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    eventually(lambda: check(seen(browser)))
    return seen(browser)


def complaints(browser: webdriver.Chrome) -> list[str]:
    return [each["message"] for each in browser.get_log("browser") if each["level"] in ("SEVERE", "WARNING")]


def follow(browser: webdriver.Chrome, app: Umbel, url: str) -> None:
    """Watch one task from before it runs to its end."""
    complaints(browser)
    browser.get(url)
    browser.execute_script("addEventListener('umbel-done', (event) => { window.ended = event.detail.state; })")
    now = until(browser, lambda it: it["state"] == "PENDING")
    assert (now["now"], now["label"], now["words"]) == (None, "Pictures", "Waiting")
    say(app, 2, HOSTILE)
    now = until(browser, lambda it: it["now"] == "25")
    assert now["words"] == now["told"] == f"25 % · {HOSTILE}"
    eventually(lambda: abs(seen(browser)["share"] - 0.25) < 0.01)
    say(app, 6, "nearly there")
    assert until(browser, lambda it: it["now"] == "75")["said"] == "", "steps are not read out"
    if folder := os.environ.get("SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / "progress.png"))
    say(app, None, state="SUCCESS")
    now = until(browser, lambda it: it["state"] == "SUCCESS")
    assert (now["now"], now["words"], now["said"]) == ("100", "Done", "Done")
    assert browser.execute_script("return window.ended") == "SUCCESS"
    assert browser.execute_script("return window.hacked") is None
    assert complaints(browser) == []


def test_flask_is_asked_once_a_second(browser: webdriver.Chrome, app: Umbel) -> None:
    with flask_page(app) as (url, asked):
        follow(browser, app, url)
        assert not any(each.startswith("True") for each in asked)
        count = len(asked)
        threading.Event().wait(2.5)
        assert len(asked) == count, "what has ended is not asked about"


def test_flask_streams_where_it_is_told_to(browser: webdriver.Chrome, app: Umbel) -> None:
    with flask_page(app, streams=2) as (url, asked):
        follow(browser, app, url)
        assert [each for each in asked if each.startswith("True")] == ["True 200"]


def test_asgi_streams(browser: webdriver.Chrome, app: Umbel) -> None:
    with asgi_page(app) as url:
        follow(browser, app, url)


def test_it_asks_where_there_is_no_room_for_a_stream(browser: webdriver.Chrome, app: Umbel) -> None:
    with flask_page(app, streams=1) as (url, asked):
        browser.get(url)
        events = browser.execute_script("return document.querySelector('umbel-progress').getAttribute('events')")
        browser.get("about:blank")
        with eventually_open(f"{url.rstrip('/')}{events}"):
            asked.clear()
            browser.get(url)
            say(app, 4)
            until(browser, lambda it: it["now"] == "50")
            assert asked.count("True 503") == 1 and "False 200" in asked
            say(app, None, state="FAILURE")
            now = until(browser, lambda it: it["state"] == "FAILURE")
            assert (now["now"], now["words"], now["said"]) == ("50", "Failed", "Failed")
    complaints(browser)


@contextmanager
def eventually_open(address: str) -> Iterator[None]:
    """Take the only place; the browser that had it gives it back when the server notices that it is gone."""
    held: list[Any] = []

    def take() -> bool:
        try:
            held.append(urllib.request.urlopen(address, timeout=30))
        except urllib.error.HTTPError as refused:
            refused.close()
            return False
        return True

    eventually(take)
    try:
        yield
    finally:
        held[0].close()


def test_an_address_that_has_expired_says_so(browser: webdriver.Chrome, app: Umbel) -> None:
    with flask_page(app, max_age=1) as (url, _):
        browser.get(url)
        now = until(browser, lambda it: it["state"] == "REFUSED")
        assert now["said"] == now["words"] == "This address has expired."
    complaints(browser)


def test_the_example(browser: webdriver.Chrome, tmp_path: Path) -> None:
    home = copy_example("progress", tmp_path)
    env = environment(UMBEL_HOME=str(tmp_path / "home"), PAUSE="0.1")
    port = free_port()
    complaints(browser)
    with worker("tasks", "-l", "info", "-c", "1", cwd=home, env=env):
        command = [sys.executable, "-m", "flask", "--app", "page", "run", "--port", str(port)]
        flask = subprocess.Popen(command, cwd=home, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: can_connect(port))
            browser.get(f"http://127.0.0.1:{port}/")
            until(browser, lambda it: 0 < float(it["now"] or 0) < 100 and "resizing" in it["words"])
            assert until(browser, lambda it: it["state"] == "SUCCESS")["label"] == "Resizing pictures"
        finally:
            flask.terminate()
            flask.wait(10)
    assert [each for each in complaints(browser) if "favicon" not in each] == []


def can_connect(port: int) -> bool:
    with socket.socket() as link:
        return link.connect_ex(("127.0.0.1", port)) == 0


def test_it_fits_both_themes(browser: webdriver.Chrome, app: Umbel) -> None:
    say(app, 3)
    with flask_page(app) as (url, _):
        tracks = []
        for theme in ("light", "dark"):
            browser.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            )
            browser.get(url)
            tracks.append(until(browser, lambda it: it["now"] == "37.5")["track"])
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    light, dark = (sum(map(int, each.strip("rgb()").split(", "))) for each in tracks)
    assert light > 500 and dark < 200
