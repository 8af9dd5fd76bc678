"""Bad input, with real workers and stores: it is refused where it enters, or kept with the reason; never a crash."""

from __future__ import annotations

import base64
import json
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import environment, eventually, run, worker
from umbel import Umbel
from umbel.exceptions import EncodeError, ImproperlyConfigured, OperationalError
from umbel.interfaces import Outgoing, Place
from umbel.message import Message, decode_envelope

TASKS = """
import os
import threading

from umbel import Umbel

app = Umbel("jobs", broker=os.environ["URL"], backend=os.environ["URL"])


class Private(Exception):
    def __init__(self, code, *, hint):
        super().__init__(code)
        self.hint = hint


class Locked(Exception):
    def __init__(self, text):
        super().__init__(text, threading.Lock())


@app.task(name="add")
def add(x, y):
    return x + y


@app.task(name="fetch")
async def fetch(x):
    return x


@app.task(name="private")
def private():
    raise Private(7, hint="look under the mat")


@app.task(name="locked")
def locked():
    raise Locked("cannot be copied")


@app.task(name="returns_a_lock")
def returns_a_lock():
    return {"lock": threading.Lock()}
"""


class Store:
    """A folder with the tasks, a store of one kind, and a client of it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.env = folder, url, environment(URL=url)
        self.app = Umbel("client", broker=url, backend=url, set_as_current=False)
        (folder / "jobs.py").write_text(TASKS)

    def size(self, place: Place) -> int:
        return self.app.broker.size("celery", place)

    def put(self, raw: bytes) -> None:
        """Put these bytes into the queue, as somebody who knows nothing of messages would. No worker may run yet."""
        if self.url.startswith("redis"):
            import redis

            with redis.Redis.from_url(self.url) as client:
                client.lpush("celery", raw)
            return
        mark = uuid.uuid4().hex
        self.app.broker.publish([Outgoing(message=Message(body=mark.encode()), task_id=mark, queue="celery")])
        with sqlite3.connect(self.url.removeprefix("sqlite:///")) as database:
            needle = base64.b64encode(mark.encode()).decode()
            changed = database.execute(
                "UPDATE messages SET raw = ? WHERE instr(CAST(raw AS TEXT), ?)", (raw, needle)
            ).rowcount
            assert changed == 1
        database.close()


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("redis_url" if request.param == "redis" else "sqlite_url")
    made = Store(tmp_path, url)
    made.app.broker.declare([])
    yield made
    made.app.close()


# -- at the caller -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [((1, object()), {}, "argument 2"), ((), {"x": 1, "y": {"deep": [object()]}}, "argument 'y'['deep'][0]")],
)
def test_an_argument_that_cannot_be_sent_is_named_and_nothing_is_sent(
    store: Store, args: Any, kwargs: Any, named: str
) -> None:
    add = store.app.task(name="add", shared=False)(lambda x, y: x + y)
    attempts: list[Callable[[], Any]] = [
        lambda: add.delay(*args, **kwargs),
        lambda: add.apply_async(args, kwargs, countdown=5),
        lambda: store.app.send_task("add", args, kwargs),
        lambda: store.app.send_many([(add, (1, 2)), (add, args, kwargs)]),
    ]
    for attempt in attempts:
        with pytest.raises(EncodeError) as caught:
            attempt()
        assert named in str(caught.value) and "add" in str(caught.value) and "object" in str(caught.value)
    assert [store.size(place) for place in (Place.READY, Place.SCHEDULED, Place.DEAD)] == [0, 0, 0]


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A port that accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_broker_that_is_down_is_a_typed_error_in_time(silent: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refusing = taken.getsockname()[1]  # free again below: nobody listens there
    for port, says in ((refusing, "refused"), (silent.getsockname()[1], "timed out")):
        url = f"redis://:hush@127.0.0.1:{port}/0"
        app = Umbel("client", broker=url, backend="disabled", publish_timeout=1.0, set_as_current=False)
        started = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            app.send_task("add", (1, 2))
        # Far more than it may take: only a call that knows no deadline takes this long.
        assert time.monotonic() - started < 20
        text = str(caught.value)
        assert f"127.0.0.1:{port}" in text and says in text.lower() and "hush" not in text
        assert "Nothing was queued" in text
        app.close()


def test_a_database_that_cannot_be_opened_is_a_typed_error(tmp_path: Path) -> None:
    app = Umbel("client", broker=f"sqlite:///{tmp_path}", set_as_current=False)  # a folder
    with pytest.raises(ImproperlyConfigured, match="is a folder; name a file in it"):
        app.send_task("add", (1, 2))
    app.close()


# -- on the queue ------------------------------------------------------------------------------------------------


def envelope(
    body: Any = ((1, 2), {}, {}), headers: dict[str, Any] | None = None, kind: str = "application/json", **more: Any
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"task": "add", "id": "some-id"} if headers is None else headers
    properties = {"body_encoding": "base64", "correlation_id": "some-id", **more}
    return json.dumps(
        {
            "body": base64.b64encode(data).decode(),
            "content-type": kind,
            "content-encoding": "utf-8",
            "headers": given,
            "properties": properties,
        }
    ).encode()


def task(**headers: Any) -> bytes:
    return envelope(headers={"task": "add", "id": "some-id", **headers})


# What is wrong, the message, the reason it is kept for, and a word of the explanation.
BAD: list[tuple[str, bytes, str, str]] = [
    ("garbage", b"\xff\x00\xfegarbage", "undecodable", "not a message envelope"),
    ("nothing", b"", "undecodable", "not a message envelope"),
    ("a list", b"[1, 2]", "undecodable", "not a message envelope"),
    ("headers of a wrong type", b'{"body": "W10=", "headers": [1], "properties": {}}', "undecodable", "headers"),
    ("a type nobody knows", envelope(kind="application/x-cobol"), "content_disallowed", "application/x-cobol"),
    ("a type not accepted", envelope(kind="application/x-python-serialize"), "content_disallowed", "accept_content"),
    ("a body that is no JSON", envelope(b"{{{"), "undecodable", "not valid JSON"),
    ("a body nested too deeply", envelope(b"[" * 100_000), "undecodable", "too deeply"),
    ("a body that is not compressed", task(compression="application/x-bz2"), "undecodable", "bz2"),
    ("a body of one part", envelope([[1, 2]]), "invalid_task", "no task"),
    ("arguments of a wrong type", envelope([5, {}, {}]), "invalid_task", "list of arguments"),
    ("no name", envelope(headers={}), "invalid_task", "'task' and 'id'"),
    ("an id of a wrong type", envelope(headers={"task": "add", "id": 7}), "invalid_task", "'task' and 'id'"),
    ("a time that is none", task(eta="soon"), "invalid_task", "eta"),
    ("an expiry that is none", task(expires=[1]), "invalid_task", "expires"),
    ("retries that are no number", task(retries="many"), "invalid_task", "retries"),
    ("limits that are none", task(timelimit="long"), "invalid_task", "timelimit"),
    ("a chain of nonsense", envelope([[1, 2], {}, {"chain": "nonsense"}]), "invalid_task", "chain"),
    ("callbacks of nonsense", envelope([[1, 2], {}, {"callbacks": [{"task": 5}]}]), "invalid_task", "callbacks"),
    ("errbacks of nonsense", envelope([["1", 2], {}, {"errbacks": [1]}]), "invalid_task", "errbacks"),
    ("too many arguments", envelope([[1, 2, 3], {}, {}]), "wrong_signature", "add"),
    ("an argument nobody knows", envelope([[], {"z": 1}, {}]), "wrong_signature", "'z'"),
    (
        "too many arguments for a coroutine",
        envelope([[1, 2], {}, {}], {"task": "fetch", "id": "some-id"}),
        "wrong_signature",
        "fetch",
    ),
]


def test_what_cannot_run_is_kept_with_the_reason_and_the_worker_goes_on(store: Store) -> None:
    results = []
    for number, (_, raw, _, _) in enumerate(BAD):
        store.put(raw)
        results.append(store.app.send_task("add", (number, 1)))
    with worker("jobs", "-l", "info", "-c", "1", cwd=store.folder, env=store.env) as running:
        assert [result.get(timeout=20) for result in results] == list(range(1, len(BAD) + 1))
        eventually(lambda: store.size(Place.DEAD) == len(BAD))
        dead = store.app.broker.peek("celery", place=Place.DEAD)
        for what, raw, reason, says in BAD:
            kept = [each for each in dead if each.raw == raw]
            assert [each.reason for each in kept] == [reason], what
            assert says in kept[0].detail, (what, kept[0].detail)
        assert running.process.poll() is None
    errors = [line for line in running.lines if ": ERROR/" in line or ": CRITICAL/" in line]
    assert len(errors) == len(BAD), running.output
    assert "exited with" not in running.output  # no process died of it
    assert [store.size(place) for place in (Place.READY, Place.HELD, Place.DEAD)] == [0, 0, len(BAD)]


def test_a_task_that_nobody_knows_is_kept_and_named(store: Store) -> None:
    result = store.app.send_task("no.such.task", (1, 2))
    with worker("jobs", "-l", "info", "-c", "1", cwd=store.folder, env=store.env) as running:
        running.expect("no.such.task")
        assert store.app.send_task("add", (1, 1)).get(timeout=20) == 2
    places = (Place.READY, Place.SCHEDULED, Place.DEAD)
    kept = [each for place in places for each in store.app.broker.peek("celery", place=place)]
    assert [decode_envelope(each.raw).headers["id"] for each in kept] == [result.id]
    assert sum("Received unregistered task" in line for line in running.lines) == 1, running.output


def test_who_sent_it_hears_of_it(store: Store) -> None:
    store.put(envelope(headers={"task": "add", "id": "told", "eta": "soon"}))
    with worker("jobs", "-l", "info", "-c", "1", cwd=store.folder, env=store.env):
        wrong = store.app.send_task("add", (1, 2, 3))
        error = wrong.get(timeout=20, propagate=False)
        assert isinstance(error, TypeError) and "3 were given" in str(error)
        told = store.app.AsyncResult("told").get(timeout=20, propagate=False)
        assert "eta must be" in str(told)


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_the_other_pools_go_on_too(pool: str, tmp_path: Path, sqlite_url: str) -> None:
    store = Store(tmp_path, sqlite_url)
    for _, raw, _, _ in BAD:
        store.put(raw)
    with worker("jobs", "-l", "info", "-c", "2", "-P", pool, cwd=store.folder, env=store.env) as running:
        assert store.app.send_task("add", (1, 1)).get(timeout=20) == 2
        eventually(lambda: store.size(Place.DEAD) == len(BAD))
        assert running.process.poll() is None
    store.app.close()


# -- on the way back ---------------------------------------------------------------------------------------------


def test_an_exception_that_the_client_cannot_have_is_readable_there(store: Store) -> None:
    trap = store.folder / "client" / "jobs.py"
    trap.parent.mkdir()
    # If the client imported the module that the message names, it would say so.
    trap.write_text("print('IMPORTED')\n")
    code = f"""
from umbel import Umbel
app = Umbel("client", broker={store.url!r}, backend={store.url!r})
for name in ("private", "locked", "returns_a_lock"):
    result = app.send_task(name)
    try:
        result.get(timeout=20)
    except Exception as error:
        print(name, "|", type(error).__name__, "|", error, "|", result.state)
app.close()
"""
    with worker("jobs", "-l", "info", "-c", "1", cwd=store.folder, env=store.env) as running:
        said = run(code, cwd=trap.parent, env=store.env)
        assert store.app.send_task("add", (1, 1)).get(timeout=20) == 2
        assert "exited with" not in running.output
    private, locked, lock = said.splitlines()
    assert "IMPORTED" not in said
    assert private.startswith("private | RemoteError | jobs.Private: 7")
    assert locked.startswith("locked | RemoteError | jobs.Locked: ") and "cannot be copied" in locked
    assert lock.startswith("returns_a_lock | EncodeError | ") and "['lock']" in lock and "lock" in lock
    assert all(line.endswith("| FAILURE") for line in (private, locked, lock))


def test_an_exception_that_cannot_be_pickled_is_readable_too(tmp_path: Path, redis_url: str) -> None:
    store = Store(tmp_path, redis_url)
    pickles = "\napp.conf.update(result_serializer='pickle', accept_content=['json', 'pickle'], accept_unsafe=True)\n"
    (tmp_path / "jobs.py").write_text(TASKS + pickles)
    client = Umbel("client", broker=redis_url, backend=redis_url, set_as_current=False)
    client.conf.update(result_serializer="pickle", accept_content=["json", "pickle"], accept_unsafe=True)
    env = store.env | {"C_FORCE_ROOT": "1"}
    with worker("jobs", "-l", "info", "-c", "1", cwd=tmp_path, env=env):
        for name, says in (("locked", "cannot be copied"), ("private", "7"), ("returns_a_lock", "lock")):
            error = client.send_task(name).get(timeout=20, propagate=False)
            assert isinstance(error, Exception) and says in str(error), repr(error)
        assert client.send_task("add", (1, 1)).get(timeout=20) == 2
    client.close()
    store.app.close()


# -- at the command line -----------------------------------------------------------------------------------------

NO_REDIS = "import sys; sys.modules.update(redis=None, hiredis=None); from umbel.cli.main import main; main()"
APPS = {
    "good.py": "from umbel import Umbel\napp = Umbel('good')\n",
    "broken.py": "import nothing_of_that_name\n",
    "raising.py": "1 / 0\n",
    "misspelt.py": "def f(:\n",
    "empty.py": "value = 1\n",
    "stranger.py": "app = object()\n",
    "typo.py": "from umbel import Umbel\napp = Umbel('typo', borker='redis://localhost')\n",
    "badtype.py": "from umbel import Umbel\napp = Umbel('x')\napp.conf.update(worker_concurrency='many')\n",
    "badtasks.py": "from umbel import Umbel\napp = Umbel('x', include=['broken'])\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in APPS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def umbel(folder: Path, *args: str, start: tuple[str, ...] = ("-m", "umbel")) -> subprocess.CompletedProcess[str]:
    env = environment(UMBEL_HOME=str(folder / "home"), C_FORCE_ROOT="1")
    command = [sys.executable, *start, *args]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["-A", "nowhere", "worker"], 78, ["nowhere"]),
        (["-A", "good.nowhere", "worker"], 78, ["good", "nowhere"]),
        (["-A", "good:nowhere", "worker"], 78, ["'good'", "'nowhere'"]),
        (["-A", "broken", "worker"], 78, ["broken", "nothing_of_that_name", "line 1"]),
        (["-A", "raising", "worker"], 78, ["raising", "ZeroDivisionError", "line 1"]),
        (["-A", "misspelt", "worker"], 78, ["misspelt", "SyntaxError", "line 1"]),
        (["-A", "empty", "worker"], 78, ["empty", "app"]),
        (["-A", "stranger:app", "worker"], 78, ["stranger", "object"]),
        (["-A", "typo", "worker"], 78, ["borker", "broker"]),
        (["-A", "badtype", "worker"], 78, ["worker_concurrency", "'many'"]),
        (["-A", "badtasks", "worker"], 78, ["nothing_of_that_name", "broken.py"]),
        (["worker"], 78, ["-A"]),
        (["-A", "good", "-b", "rdeis://localhost", "worker"], 78, ["rdeis", "'redis'"]),
        (["-A", "good", "-b", "localhost:6379", "worker"], 78, ["scheme", "redis://"]),
        (["-A", "good", "-b", "nats://localhost", "worker"], 78, ["nats"]),
        (["-A", "good", "--result-backend", "rdeis://localhost", "worker"], 78, ["rdeis", "'redis'"]),
        (["-A", "good", "--config", "nowhere", "worker"], 78, ["nowhere"]),
        (["-A", "good", "worker", "-P", "gevent"], 78, ["gevent", "-P asyncio"]),
        (["-A", "good", "worker", "-f", "/nowhere/at/all.log"], 78, ["/nowhere/at/all.log"]),
        (["-A", "good", "worker", "--nonsense"], 2, ["--nonsense"]),
        (["-A", "good", "worker", "-l", "loud"], 2, ["loud", "info"]),
        (["-A", "good", "worker", "-c", "-3"], (2, 78), ["-3"]),
        (["-A", "good", "worker", "extra"], 2, ["extra"]),
        (["-A", "good", "wroker"], 2, ["wroker", "'worker'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_ends_with_one_line_that_says_what_to_do(
    folder: Path, args: list[str], status: Any, said: list[str]
) -> None:
    done = umbel(folder, *args)
    assert done.returncode in (status if isinstance(status, tuple) else (status,)), done.stderr
    error = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(error) == 1 and "Traceback" not in done.stderr, done.stderr
    assert all(word.lower() in error[0].lower() for word in said), error[0]
    if done.returncode == 78:
        assert done.stderr.count("\n") == 1, done.stderr


def test_a_missing_extra_names_what_to_install(folder: Path) -> None:
    done = umbel(folder, "-A", "good", "-b", "redis://localhost", "worker", start=("-c", NO_REDIS))
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1 and "pip install 'umbel[redis]'" in done.stderr, done.stderr


def test_who_wants_it_gets_the_traceback_of_the_app(folder: Path) -> None:
    env = environment(UMBEL_TRACEBACK="1")
    command = [sys.executable, "-m", "umbel", "-A", "raising", "worker"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 78
    assert "Traceback" in done.stderr and 'raising.py", line 1' in done.stderr
