"""Progress: what a task says, how often it is written, who reads it, and the addresses that pages may ask."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import pytest

from support import eventually
from umbel import Umbel
from umbel.contrib.progress import BadToken, Signer, element, id_of, script
from umbel.contrib.progress.asgi import Progress as AsgiProgress
from umbel.contrib.progress.flask import Progress as FlaskProgress
from umbel.progress import SILENT, WRITE_SECONDS, as_meta, percent_of, read_progress, report_of
from umbel.watching import watch

SECRET = "a secret that is long enough"


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Umbel]:
    url = f"memory://{request.node.name}"
    app = Umbel("shop", broker=url, backend=url, set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def task(app: Umbel) -> Any:
    @app.task(bind=True, name="work")
    def work(self: Any) -> None: ...

    return work


@contextlib.contextmanager
def attempt(task: Any, id: str = "t1", **fields: Any) -> Iterator[Any]:
    """Be inside an attempt, as a worker makes it."""
    task.push_request(id=id, task=task.name, called_directly=False, **fields)
    try:
        yield task
    finally:
        task.pop_request()


def stored(app: Umbel, id: str = "t1") -> Any:
    return app.AsyncResult(id).info


class Writes:
    """Counts what reaches the store."""

    def __init__(self, app: Umbel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.metas: list[dict[str, Any]] = []
        self.moments: list[float] = []
        inner = app.store_state

        def counting(task: Any, id: Any, state: Any, meta: Any, *rest: Any) -> None:
            self.metas.append(meta)
            self.moments.append(time.monotonic())
            inner(task, id, state, meta, *rest)

        monkeypatch.setattr(app, "store_state", counting)


class TestTelling:
    def test_it_is_stored_as_celery_programs_store_it(self, app: Umbel, task: Any) -> None:
        with attempt(task):
            task.progress(3, 10, "resizing")
            eventually(lambda: app.AsyncResult("t1").state == "PROGRESS")
        assert stored(app) == {"current": 3, "total": 10, "percent": 30.0, "text": "resizing"}

    def test_the_newest_is_written_and_few_of_those_before(
        self, app: Umbel, task: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writes = Writes(app, monkeypatch)
        with attempt(task):
            until = time.monotonic() + 0.5
            done = 0
            while time.monotonic() < until:
                done += 1
                task.progress(done, 10**9)
                time.sleep(0.001)
            eventually(lambda: (stored(app) or {}).get("current") == done)
        assert done > 2 * len(writes.metas)
        gaps = [b - a for a, b in zip(writes.moments, writes.moments[1:], strict=False)]
        assert min(gaps) >= WRITE_SECONDS * 0.99

    def test_without_a_text_the_text_stays(self, app: Umbel, task: Any) -> None:
        with attempt(task):
            task.progress(1, 2, "x" * 9999)
            task.progress(2, 2)
            eventually(lambda: (stored(app) or {}).get("current") == 2)
        assert stored(app)["text"] == "x" * 500

    def test_nothing_is_written_after_the_end(self, app: Umbel, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        writes = Writes(app, monkeypatch)
        with attempt(task):
            task.progress(1, 3)
            eventually(lambda: len(writes.metas) == 1)
            task.progress(2, 3)  # not due yet
            report_of(task).end()
        time.sleep(3 * WRITE_SECONDS)
        assert [meta["current"] for meta in writes.metas] == [1]

    def test_the_end_waits_for_a_write_on_its_way(self, app: Umbel, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        began, go, order = threading.Event(), threading.Event(), []

        def slow(*args: Any) -> None:
            began.set()
            go.wait(10)
            order.append("written")

        monkeypatch.setattr(app, "store_state", slow)
        with attempt(task):
            task.progress(1)
            assert began.wait(10)
            threading.Timer(0.1, go.set).start()
            report_of(task).end()
            order.append("ended")
        assert order == ["written", "ended"]

    def test_it_ends_with_the_attempt(self, app: Umbel) -> None:
        app.conf.task_store_eager_result = True
        reports = []

        @app.task(bind=True)
        def work(self: Any) -> str:
            self.progress(1, 2)
            reports.append(report_of(self))
            return "done"

        result = work.apply()
        assert reports[0]._ended
        time.sleep(2 * WRITE_SECONDS)
        assert app.AsyncResult(result.id).state == "SUCCESS"

    def test_a_store_that_fails_fails_no_task_and_is_told_of_once(
        self, app: Umbel, task: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls: list[Any] = []

        def broken(*args: Any) -> None:
            calls.append(args)
            raise OSError("disk full")

        monkeypatch.setattr(app, "store_state", broken)
        with attempt(task):
            for done in range(2):
                task.progress(done)
                eventually(lambda done=done: len(calls) == done + 1)
        assert [each.getMessage() for each in caplog.records] == [
            "Task work[t1]: its progress cannot be stored: disk full"
        ]

    def test_nothing_is_kept_where_nobody_reads_it(self, app: Umbel, task: Any) -> None:
        assert report_of(task) is SILENT, "outside of an attempt"
        with attempt(task, ignore_result=True):
            assert report_of(task) is SILENT
        with attempt(task, is_eager=True):
            assert report_of(task) is SILENT
        task.ignore_result = True
        with attempt(task):
            assert report_of(task) is SILENT
        with attempt(task, ignore_result=False):
            assert report_of(task) is not SILENT, "what the caller says counts"
        bare = Umbel("bare", broker="memory://bare", backend="disabled://", set_as_current=False)
        with attempt(bare.task(lambda: None, name="bare")) as other:
            assert report_of(other) is SILENT

    @pytest.mark.parametrize(
        ("done", "total", "error"),
        [("3", None, TypeError), (True, None, TypeError), (None, 2, TypeError), (-1, None, ValueError),
         (float("nan"), 1, ValueError), (1, float("inf"), ValueError), (1, [], TypeError)],
    )  # fmt: skip
    def test_bad_amounts_are_refused_everywhere(self, task: Any, done: Any, total: Any, error: Any) -> None:
        with pytest.raises(error, match="progress: (done|total) must be a number"):
            task.progress(done, total)
        with attempt(task), pytest.raises(error):
            task.progress(done, total)

    def test_numbers_of_other_types_become_plain(self, app: Umbel, task: Any) -> None:
        class Count:
            def __index__(self) -> int:
                return 3

        with attempt(task):
            task.progress(Count(), Decimal("4"))
            eventually(lambda: stored(app) is not None)
        assert stored(app) == {"current": 3, "total": 4.0, "percent": 75.0, "text": ""}

    def test_percent(self) -> None:
        assert [percent_of(*pair) for pair in ((0, 3), (2999, 3000), (3, 3), (9, 3), (0, 0), (1, None))] == [
            0.0, 99.9, 100.0, 100.0, 100.0, None,
        ]  # fmt: skip

    def test_a_message_cannot_bring_a_report(self) -> None:
        from umbel.context import Context
        from umbel.message import Call

        call = Call(id="t", task="work", args=[], kwargs={}, headers={"_progress": "x"}, properties={})
        assert Context.from_call(call)._progress is None


class TestTracking:
    def test_items_count_once_they_are_dealt_with(self, app: Umbel, task: Any) -> None:
        with attempt(task):
            seen = []
            for item in task.track("abcd", text="letters"):
                seen.append((item, report_of(task)._note))
            last = report_of(task)._note
        assert seen == [(letter, (done, 4, "letters")) for done, letter in enumerate("abcd")]
        assert last == (4, 4, "letters")

    def test_a_total_may_be_unknown_or_given(self, task: Any) -> None:
        with attempt(task):
            list(task.track(each for each in "ab"))
            assert report_of(task)._note[:2] == (2, None)
            list(task.track((each for each in "ab"), total=5))
            assert report_of(task)._note[:2] == (2, 5)

    def test_asynchronous_items(self, task: Any) -> None:
        async def items() -> AsyncIterator[int]:
            for each in range(3):
                await asyncio.sleep(0)
                yield each

        async def main() -> list[int]:
            with attempt(task):
                found = [each async for each in task.track(items(), total=3)]
                assert report_of(task)._note[:2] == (3, 3)
            return found

        assert asyncio.run(main()) == [0, 1, 2]

    def test_it_works_without_a_worker(self, task: Any) -> None:
        assert list(task.track([1, 2])) == [1, 2]


class TestReading:
    def test_what_others_write(self) -> None:
        assert read_progress("PROGRESS", {"current": 1, "total": 4, "status": "mending"})[1:] == (1, 4, 25.0, "mending")
        assert read_progress("PROGRESS", {"done": 1, "total": 0})[1:] == (1, 0, 100.0, "")
        assert read_progress("UPLOADING", {"percent": 250, "description": "x"})[1:] == (None, None, 100.0, "x")
        assert read_progress("PROGRESS", as_meta(1, None, "a"))[1:] == (1, None, None, "a")

    @pytest.mark.parametrize(
        "info", [None, "x", 3, {}, {"current": "x"}, {"current": True, "total": -1}, {"percent": float("nan")}]
    )
    def test_what_is_not_understood_is_left_out(self, info: Any) -> None:
        found = read_progress("PROGRESS", info)
        assert (found.percent, found.total) == (None, None) and not found.ready

    def test_results_do_not_show(self) -> None:
        assert read_progress("SUCCESS", {"text": "secret", "current": 1})[1:] == (None, None, 100.0, "")
        assert read_progress("FAILURE", {"text": "secret"}).text == ""
        assert read_progress("STARTED", {"pid": 1, "n": 3}).current is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestWatching:
    def finish(self, app: Umbel, task: Any, state: str = "SUCCESS", value: Any = 42) -> None:
        for done in (5, 10):
            app.store_state(task, "t1", "PROGRESS", as_meta(done, 10, "\x1b[2Jresizing [red]"), None)
            time.sleep(0.3)
        app.store_state(task, "t1", state, value, None)

    def watched(self, app: Umbel, task: Any, file: io.StringIO, *ending: Any) -> Any:
        other = threading.Thread(target=self.finish, args=(app, task, *ending))
        other.start()
        try:
            return app.AsyncResult("t1").watch(20, file=file)
        finally:
            other.join()

    def test_lines_where_there_is_no_terminal(self, app: Umbel, task: Any) -> None:
        file = io.StringIO()
        assert self.watched(app, task, file) == 42
        lines = file.getvalue().splitlines()
        assert lines[-1] == "100 % success"
        assert "50 % \\x1b[2Jresizing [red]" in [line.strip() for line in lines]

    def test_a_bar_of_rich(self, app: Umbel, task: Any) -> None:
        pytest.importorskip("rich")
        file = Terminal()
        assert self.watched(app, task, file) == 42
        assert "100%" in file.getvalue() and "success" in file.getvalue()
        assert "\x1b[2J" not in file.getvalue() and "\\x1b[2Jresizing [red]" in file.getvalue()

    def test_a_line_without_rich(self, app: Umbel, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "rich.console", None)
        file = Terminal()
        assert self.watched(app, task, file) == 42
        assert file.getvalue().count("\n") == 1 and file.getvalue().endswith("\n")
        assert f"[{'#' * 15}{'.' * 15}]  50 % \\x1b[2Jresizing [red]" in file.getvalue()
        assert f"[{'#' * 30}] 100 % success" in file.getvalue()

    def test_a_failure_is_raised(self, app: Umbel, task: Any) -> None:
        file = io.StringIO()
        with pytest.raises(ValueError, match="no such image"):
            self.watched(app, task, file, "FAILURE", ValueError("no such image"))
        assert file.getvalue().splitlines()[-1] == "failure"

    def test_what_has_ended_is_shown_too(self, app: Umbel, task: Any) -> None:
        app.store_state(task, "t1", "SUCCESS", 1, None)
        result = app.AsyncResult("t1")
        assert result.get() == 1
        file = io.StringIO()
        assert watch(result, file=file) == 1
        assert file.getvalue().splitlines()[-1] == "100 % success"

    def test_nobody_waits_for_ever(self, app: Umbel) -> None:
        with pytest.raises(TimeoutError):
            app.AsyncResult("nobody").watch(0.05, file=io.StringIO())


class TestTokens:
    def test_there_and_back(self) -> None:
        signer = Signer([SECRET], max_age=60)
        for id in ("5a1c0e9f", "ü/.. ?#%\n", "x" * 300):
            token = signer.sign(id, now=1000)
            assert signer.read(token, now=1059) == id
            assert not set(token) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")

    def test_they_expire(self) -> None:
        signer = Signer([SECRET], max_age=60)
        with pytest.raises(BadToken) as caught:
            signer.read(signer.sign("t1", now=1000), now=1060)
        assert caught.value.status == 410

    def test_nobody_makes_or_changes_one(self) -> None:
        signer = Signer([SECRET])
        token = signer.sign("t1")
        (name, expiry, mac), other = token.split("."), signer.sign("t2").split(".")[0]
        forged = [f"{other}.{expiry}.{mac}", f"{name}.{int(expiry) + 1}.{mac}", f"{name}.{expiry}.", f"{name}.{expiry}",
                  "", ".", "..", "...", "ü", "\ud800", token + "A", token[:-1], token * 50,
                  Signer(["another secret, long enough"]).sign("t1")]  # fmt: skip
        for each in forged:
            with pytest.raises(BadToken) as caught:
                signer.read(each)
            assert caught.value.status == 403, each

    def test_secrets_are_turned_over(self) -> None:
        old, new = "an old secret, long enough", "a new secret, long enough"
        assert Signer([new, old]).read(Signer([old]).sign("t1")) == "t1"
        with pytest.raises(BadToken):
            Signer([old]).read(Signer([new, old]).sign("t1"))

    def test_what_cannot_be_a_secret_or_an_age(self) -> None:
        for secrets, age in (
            ([], 1),
            (["short"], 1),
            ([SECRET], 0),
            ([SECRET], float("inf")),
            ([SECRET], float("nan")),
        ):
            with pytest.raises(ValueError, match="progress: "):
                Signer(secrets, age)
        for id in ("", "x" * 2000):
            with pytest.raises(ValueError, match="progress: "):
                Signer([SECRET]).sign(id)
        with pytest.raises(TypeError, match="a result or a task id"):
            id_of(3)

    def test_the_tag_is_escaped(self) -> None:
        assert element("/a", None, '"><script>') == (
            '<umbel-progress src="/a" label="&quot;&gt;&lt;script&gt;"></umbel-progress>'
        )


class TestFlask:
    @pytest.fixture
    def web(self, app: Umbel) -> Any:
        from flask import Flask

        web = Flask("web")
        web.config["SECRET_KEY"] = SECRET
        FlaskProgress(web, app, streams=1)
        return web

    def test_a_page_asks(self, app: Umbel, task: Any, web: Any) -> None:
        app.store_state(task, "t1", "PROGRESS", as_meta(1, 4, "résumé"), None)
        with web.test_request_context():
            address = web.extensions["umbel_progress"].url("t1")
            tags = web.jinja_env.from_string(
                "{{ umbel_progress_script() }}{{ umbel_progress(id, label='<x>') }}"
            ).render(id="t1")
        assert '<script type="module" src="/progress/progress.js"></script><umbel-progress src="/progress/' in tags
        assert '/events" label="&lt;x&gt;"></umbel-progress>' in tags
        client = web.test_client()
        reply = client.get(address)
        assert reply.json == {
            "state": "PROGRESS", "current": 1, "total": 4, "percent": 25.0, "text": "résumé", "ready": False,
        }  # fmt: skip
        assert reply.headers["cache-control"] == "no-store"
        assert client.get(address + "x").status_code == 403
        assert client.get("/progress/progress.js").mimetype == "text/javascript"

    def test_results_and_errors_are_not_told(self, app: Umbel, task: Any, web: Any) -> None:
        app.store_state(task, "t1", "FAILURE", ValueError("the password is x"), None, "Traceback")
        with web.test_request_context():
            address = web.extensions["umbel_progress"].url("t1")
        reply = web.test_client().get(address)
        assert reply.json["state"] == "FAILURE" and reply.json["ready"]
        assert "password" not in reply.text and "Traceback" not in reply.text

    def test_a_stream_ends_with_the_task_and_gives_its_place_back(self, app: Umbel, task: Any, web: Any) -> None:
        with web.test_request_context():
            address = web.extensions["umbel_progress"].url("t1") + "/events"
        client = web.test_client()
        open_one = client.get(address)
        assert client.get(address).status_code == 503, "one place, and it is taken"
        steps = iter(open_one.response)
        assert b'"state": "PENDING"' in next(steps)
        app.store_state(task, "t1", "PROGRESS", as_meta(1, 2, ""), None)
        assert b'"percent": 50.0' in next(steps)
        app.store_state(task, "t1", "SUCCESS", 1, None)
        assert b'"ready": true' in next(steps)
        assert list(steps) == []
        open_one.close()
        assert client.get(address).text.count("data: ") == 1

    def test_without_a_secret_it_says_what_to_do(self, web: Any) -> None:
        web.config["SECRET_KEY"] = None
        with web.test_request_context(), pytest.raises(RuntimeError, match="set SECRET_KEY"):
            web.extensions["umbel_progress"].url("t1")


class TestAsgi:
    @pytest.fixture
    def progress(self, app: Umbel) -> AsgiProgress:
        return AsgiProgress(app, secret=SECRET, streams=1)

    @staticmethod
    async def ask(progress: AsgiProgress, path: str, *, root: str = "", method: str = "GET") -> tuple[int, str]:
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(3600)

        async def send(message: Any) -> None:
            sent.append(message)

        await progress({"type": "http", "method": method, "path": path, "root_path": root}, receive, send)
        return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:]).decode()

    def test_a_page_asks(self, app: Umbel, task: Any, progress: AsgiProgress) -> None:
        app.store_state(task, "t1", "PROGRESS", as_meta(1, 4, "a"), None)
        address = progress.url(app.AsyncResult("t1"))

        async def main() -> None:
            for path, root in ((address, ""), (address, "/progress"), (address.removeprefix("/progress"), "/progress")):
                status, text = await self.ask(progress, path, root=root)
                assert (status, json.loads(text)["percent"]) == (200, 25.0)
            assert (await self.ask(progress, address + "x"))[0] == 403
            assert (await self.ask(progress, "/progress/"))[0] == 404
            assert (await self.ask(progress, address + "/more"))[0] == 404
            assert (await self.ask(progress, address, method="POST"))[0] == 405
            assert (await self.ask(progress, "/progress/progress.js"))[1].encode() == script()

        asyncio.run(main())

    def test_a_stream_tells_what_changes_and_ends(self, app: Umbel, task: Any, progress: AsgiProgress) -> None:
        async def main() -> None:
            stream = asyncio.ensure_future(self.ask(progress, progress.url("t1") + "/events"))
            await asyncio.sleep(0.3)
            assert (await self.ask(progress, progress.url("t1") + "/events"))[0] == 503, "one place, and it is taken"
            for done in (1, 2):
                app.store_state(task, "t1", "PROGRESS", as_meta(done, 2, ""), None)
                await asyncio.sleep(0.5)
            app.store_state(task, "t1", "SUCCESS", "the value", None)
            _, text = await asyncio.wait_for(stream, 20)
            told = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line.startswith("data")]
            assert [each["state"] for each in told] == ["PENDING", "PROGRESS", "PROGRESS", "SUCCESS"]
            assert "the value" not in text
            assert (await self.ask(progress, progress.url("t1") + "/events"))[0] == 200, "the place is free again"

        asyncio.run(main())


def test_a_program_that_never_asks_loads_no_web_framework() -> None:
    code = (
        "import sys, umbel.task, umbel.asyncresult, umbel.contrib.progress; print({'rich', 'flask'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
