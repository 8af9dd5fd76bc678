"""S11-S13, S30: what a log, a terminal, an error or a process list shows."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile import ESCAPES, inject, make_app, peek, task_message
from support import environment, eventually, run, worker
from umbel import Umbel
from umbel.drivers import mask
from umbel.exceptions import OperationalError, Reject
from umbel.interfaces import Place
from umbel.settings import Settings, censor
from umbel.testing.servers import RedisServer, free_port
from umbel.utils.log import PROCESS_FORMAT, ColorFormatter, TaskFormatter
from umbel.utils.text import one_line
from umbel.worker.inprocess import start_worker

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
RECORD = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:,]+: [A-Z]+/")


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = make_app(request.node.name)
    yield made
    made.close()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, as a worker's log file would hold it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(ColorFormatter(PROCESS_FORMAT, use_color=False))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def check(text: str, *forbidden: str) -> None:
    """Check that nothing in a log moves the cursor, and that no record was forged."""
    assert text
    assert CONTROLS.search(text) is None, CONTROLS.findall(text)
    assert not [line for line in text.splitlines() if RECORD.match(line) and "forged" in line.split("] ", 1)[-1][:8]]
    for word in forbidden:
        assert word not in text


# -- S11: lines that a message or a task forges ------------------------------------------------------------------


def test_s11_hostile_names_and_headers_forge_no_line(app: Any, log: io.StringIO) -> None:
    app.conf.task_unknown_backoff = (0.01,)
    inject(app, task_message(task=ESCAPES, id="1"))
    inject(app, task_message(id=f"2{ESCAPES}"))
    inject(app, task_message(id="3", shadow=ESCAPES))
    inject(app, task_message(id="4", content_type=ESCAPES))
    inject(app, task_message(id="5", compression=ESCAPES))
    inject(app, task_message(id="6", **{ESCAPES: ESCAPES}, retries=ESCAPES))
    inject(app, task_message(id="7", expires=ESCAPES))
    inject(app, task_message(b"{}", id="8", task="", **{ESCAPES: 1}))
    inject(app, task_message(b'[[{"__type__": "\\r\\n[2026-01-01 00:00:00,000: CRITICAL/x] forged \\u001b[31m"'
                             b', "__value__": 1}], {}, {}]', id="9"))  # fmt: skip
    inject(app, task_message(b'[[], {"\\u001b[31m\\r\\n[2026-01-01 00:00:00,000: ERROR/x] forged": 1}, {}]', id="10"))
    with start_worker(app):
        app.send_task("echo", []).get(timeout=20)
        eventually(lambda: app.broker.size("celery", Place.DEAD) >= 7)
    check(log.getvalue())


def test_s11_results_errors_and_reasons_forge_no_line(app: Any, log: io.StringIO) -> None:
    class Odd(Exception):
        def __repr__(self) -> str:
            return ESCAPES

        __str__ = __repr__

    class Broken(Exception):
        def __repr__(self) -> str:
            raise RuntimeError(ESCAPES)

        __str__ = __repr__

    @app.task(name="odd", bind=True, max_retries=1)
    def odd(self: Any, how: str) -> Any:
        if how == "retry":
            raise self.retry(exc=Odd(), countdown=0)
        if how == "reject":
            raise Reject(ESCAPES, requeue=False)
        raise {"odd": Odd, "broken": Broken}[how](ESCAPES)

    with start_worker(app):
        results = [app.send_task("echo", [ESCAPES, "x" * 3000]), app.send_task("fail", [ESCAPES])]
        results += [odd.delay(how) for how in ("retry", "odd", "broken")]
        for result in results:
            result.get(timeout=20, propagate=False)
        odd.delay("reject")
        eventually(lambda: len(peek(app, Place.DEAD)) == 1)
    text = log.getvalue()
    check(text)
    assert "succeeded in" in text
    assert "raised unexpected" in text


def test_s11_a_traceback_keeps_its_shape(log: io.StringIO) -> None:
    try:
        raise ValueError(f"first\nsecond\n{ESCAPES}")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    text = log.getvalue()
    check(text)
    assert "\nTraceback (most recent call last):\n  File " in text
    assert "\nsecond\n" in text


@given(text=st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_s11_any_text_fits_one_line(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert CONTROLS.search(line) is None
    line.encode("utf-8")


def test_s11_a_long_text_is_cut_and_one_that_cannot_be_shown_is_named() -> None:
    class Silent:
        def __str__(self) -> str:
            raise RuntimeError

    assert len(one_line("x" * 5_000_000)) == 1024
    assert "Silent" in one_line(Silent())


def test_s11_the_task_that_a_line_is_about_cannot_forge_another(app: Any) -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "hello", None, None)
    record.__dict__.update(task_id="a", task_name="b")
    assert TaskFormatter("%(task_name)s[%(task_id)s]: %(message)s", use_color=False).format(record) == "b[a]: hello"


# -- S12: secrets in URLs ----------------------------------------------------------------------------------------

CANARY = "cAnary-pa55"
URLS = [
    f"redis://:{CANARY}@h:6379/0", f"redis://u:{CANARY}@h/0", f"rediss://u:{CANARY}@h/0?ssl_password={CANARY}",
    f"redis://h/0?password={CANARY}", f"redis://h/0?ssl_cert_reqs=none&PASSWORD={CANARY}&db=1",
    f"sentinel://:{CANARY}@a:1;sentinel://:{CANARY}@b:2", f"redis+socket://:{CANARY}@/tmp/s?virtual_host=1",
    f"amqp://u:{CANARY}@h//", f"amqps://u:p@{CANARY}@h/v", f"redis://u:a/{CANARY}@h/0", f"redis://u:a;{CANARY}@h/0",
    f"redis://u:a#{CANARY}@h/0", f"redis://u:a?{CANARY}@h/0", f"sqs://AKIA:{CANARY}%2Fx@", f"https://h/p?access_token={CANARY}",
    f"https://h/p?a=1;sig={CANARY}", f"db+postgresql://u:{CANARY}@h/d", f"mongodb://u:{CANARY}@a,b/x",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_s12_no_form_of_url_shows_its_password(url: str) -> None:
    assert CANARY not in mask(url)
    assert CANARY not in mask([url, url])
    conf = Settings({"broker_url": url, "result_backend": url})
    shown = conf.humanize(with_defaults=True) + repr(conf.table()) + repr(censor({"a": [url], "b": {"c": url}}))
    assert CANARY not in shown


@pytest.mark.parametrize("url", URLS)
def test_s12_no_error_shows_a_password(url: str) -> None:
    said = ""
    try:
        app = Umbel("x", broker=url, backend=url, set_as_current=False, broker_connection_timeout=0.2,
                    broker_transport_options={"master_name": "m", "sentinel_kwargs": {"password": CANARY}})  # fmt: skip
        app.send_task("echo", [], retry=False)
    except Exception as error:
        chain: BaseException | None = error
        while chain is not None:
            said += f"{chain} {chain!r}"
            chain = chain.__cause__ or chain.__context__
    assert said
    assert CANARY not in said


def test_s12_settings_that_hold_secrets_are_not_shown() -> None:
    secret = {
        "broker_password": CANARY, "security_key": CANARY, "security_key_password": CANARY,
        "redis_backend_credential_provider": None, "s3_secret_access_key": CANARY,
        "broker_transport_options": {"sentinel_kwargs": {"password": CANARY}, "password": CANARY},
        "broker_use_ssl": {"ssl_password": CANARY}, "result_backend_transport_options": {"password": CANARY},
    }  # fmt: skip
    conf = Settings({name: value for name, value in secret.items() if value})
    assert CANARY not in conf.humanize(with_defaults=True) + repr(conf.table(with_defaults=True)) + repr(conf)


PROGRAM = """
from umbel import Umbel
app = Umbel("shop")
app.config_from_object({{"broker_url": {url!r}, "result_backend": {url!r}, "worker_redirect_stdouts": False}})

@app.task(name="echo")
def echo(value):
    return len(value)

@app.task(name="fail")
def fail(value):
    raise ValueError("it failed")
"""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """The URL, with its password, of a Redis that wants one."""
    import redis

    with RedisServer() as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", CANARY)
        url = server.url.replace("redis://", f"redis://:{CANARY}@")
        (tmp_path / "guarded.py").write_text(PROGRAM.format(url=url))
        yield url
        # The server stops by a signal, for which no password is needed.


def test_s12_s13_s30_no_output_of_a_whole_run_shows_the_password_or_an_argument(guarded: str, tmp_path: Path) -> None:
    env = environment()
    argument = "cAnary-argument"
    command = [sys.executable, "-m", "umbel", "-A", "guarded"]
    with worker("guarded", "-c", "2", "-l", "debug", cwd=tmp_path, env=env) as running:
        code = (
            "from guarded import echo, fail\n"
            f"print(echo.apply_async(({argument!r},), argsrepr='***').get(timeout=20))\n"
            f"print(repr(fail.apply_async(({argument!r},), argsrepr='***').get(timeout=20, propagate=False)))\n"
        )
        said = run(code, cwd=tmp_path, env=env)
        for words in (["report"], ["status"], ["list", "queues"], ["purge", "-f"]):
            done = subprocess.run(
                command + words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30, check=False
            )
            said += done.stdout + done.stderr
        for pid in tree(running.process.pid):
            for name in ("cmdline", "environ", "comm"):
                said += Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "replace")
    said += running.output
    assert "ready." in said
    assert "succeeded in" in said
    assert CANARY not in said
    assert argument not in said


def tree(pid: int) -> list[int]:
    """Return a process and all that it has started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


CHILD = """
import os, subprocess
from umbel import Umbel
app = Umbel("shop", broker=os.environ["URL"], backend=os.environ["URL"])

@app.task(name="look")
def look():
    return subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True).stdout
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_s30_a_program_that_a_task_starts_gets_no_open_file_of_the_worker(
    store: str, request: pytest.FixtureRequest, sqlite_url: str, tmp_path: Path
) -> None:
    (tmp_path / "looking.py").write_text(CHILD)
    env = environment(URL=sqlite_url if store == "sqlite" else request.getfixturevalue("redis_url"))
    code = "from looking import look\nprint(look.delay().get(timeout=20))"
    with worker("looking", "-c", "1", "-l", "info", "--pidfile", "w.pid", cwd=tmp_path, env=env):
        shown = run(code, cwd=tmp_path, env=env)
    assert " 0 -> " in shown
    for word in ("socket:", "umbel.db", "w.pid"):
        assert word not in shown


def test_s12_an_unreachable_broker_is_named_without_its_password(tmp_path: Path) -> None:
    url = f"redis://:{CANARY}@127.0.0.1:{free_port()}/0"
    (tmp_path / "guarded.py").write_text(PROGRAM.format(url=url))
    for words in (["call", "echo", "-a", '["x"]'], ["status"]):
        command = [sys.executable, "-m", "umbel", "-A", "guarded", *words]
        env = environment()
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=40, check=False)
        assert done.returncode == 69
        assert "127.0.0.1" in done.stderr
        assert CANARY not in done.stdout + done.stderr
    app = Umbel("x", broker=url, set_as_current=False)
    with pytest.raises(OperationalError) as caught:
        app.send_task("echo", [], retry=False)
    assert CANARY not in str(caught.value) + repr(app) + repr(app.conf.table())
