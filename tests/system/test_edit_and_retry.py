"""A call is changed and made once more: on the dashboard, in a terminal and from a program, with real workers."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("uvicorn")

from dashboard_support import Answer, Visitor, served
from support import DEADLINE, WorkerProcess, environment, eventually, worker
from umbel import Umbel
from umbel.dashboard.access import Access, hash_password, read_accounts
from umbel.dashboard.serving import Server
from umbel.history.replay import REPLAY_OF
from umbel.interfaces import Dead, Place, Settlement
from umbel.loading import find_app
from umbel.message import Call, decode_call, decode_envelope
from umbel.sensitive import HIDDEN
from umbel.signing import keyring_of

pytestmark = pytest.mark.timeout(180)

BIG = 123456789012345678901234567890
WHEN = {"__type__": "datetime", "__value__": "2030-01-31T18:00:00+01:00"}
HOSTILE = "<script>window.hacked=1</script>\"'{{7*191}}"

SHOP = """
from umbel import Umbel

app = Umbel(
    "shop", broker={url!r}, backend={results!r}, task_create_missing_queues=True, result_extended=True,
    security_key={key!r},
)

@app.task(name="add")
def add(x, y):
    return x + y

@app.task(name="kind")
def kind(value, **more):
    return [type(value).__name__, str(value)]

@app.task(name="pay", sensitive=("card",))
def pay(card, amount):
    return f"{{amount}} by {{card}}"
"""


class Shop:
    """An app in a module, its dashboard, and whoever looks at it."""

    def __init__(self, app: Any, server: Server, name: str, folder: Path) -> None:
        self.app = app
        self.server = server
        self.name = name
        self.folder = folder
        self.visitor = Visitor(server.url)

    @contextmanager
    def worker(self, queues: str = "celery") -> Iterator[WorkerProcess]:
        options = ("-l", "info", "-c", "1", "-n", "w1@box", "-E", "-Q", queues)
        with worker(self.name, *options, cwd=self.folder, env=environment(), status=None) as running:
            yield running

    def get(self, path: str) -> str:
        answer = self.visitor.get(path)
        assert answer.status == 200, answer.text
        return answer.text

    def post(self, path: str, **form: Any) -> Answer:
        return self.visitor.post(path, {"token": self.visitor.get("/schedule/new").token, **form})

    def act(self, path: str, **form: Any) -> str:
        """Send a form, and return the page that it leads to."""
        answer = self.post(path, **form)
        assert answer.status == 303, (answer.status, answer.text)
        return self.visitor.get(answer.headers["location"]).text

    def fields(self, page: str, action: str) -> dict[str, str]:
        """Return the fields of a form as a browser would send them."""
        part = next(each for each in page.split("<form ") if f'action="{action}"' in each).partition("</form>")[0]
        found = dict(re.findall(r'<input [^>]*name="([a-z]+)" value="([^"]*)"', part))
        found |= dict(re.findall(r'<textarea name="([a-z]+)"[^>]*>([^<]*)</textarea>', part))
        return {name: html.unescape(value).replace("\n", "\r\n") for name, value in found.items()}

    def edit(self, page: str, **fields: str) -> tuple[str, str]:
        """Change fields of a form, look at the preview and send it; return both pages."""
        kind = "dead" if page.startswith("/dead") else "tasks"
        form = self.fields(self.get(page), f"/{kind}/preview")
        shown = self.visitor.post(f"/{kind}/preview", {**form, **fields})
        assert shown.status == 200, shown.text
        sent = self.visitor.post(f"/{kind}/edit", self.fields(shown.text, f"/{kind}/edit"))
        assert sent.status == 303, sent.text
        return shown.text, self.visitor.get(sent.headers["location"]).text

    def umbel(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "umbel", "-A", self.name, *words]
        env = environment(UMBEL_HISTORY_FILE=self.app.conf.history_file)
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=60, check=False
        )

    def bury(self, name: str, *args: Any, **options: Any) -> Any:
        """Have the message of a call die, and return its letter."""
        id = self.app.send_task(name, args=args, **options).id
        leases = self.app.broker.leases()
        consumer = self.app.broker.consumer(leases.register("w9@box"), ["celery"])
        eventually(lambda: self.app.broker.size("celery") > 0)
        held = list(consumer.reserve(10))
        consumer.settle([Settlement(delivery=each, how=Dead("rejected", "of old age")) for each in held])
        consumer.close()
        leases.close()
        eventually(lambda: bool(self.app.dead.list()))
        (letter,) = self.app.dead.list()
        assert letter.task_id in (id, "")
        return letter

    def calls(self, queue: str = "celery") -> list[Call]:
        """Return the calls that wait in a queue."""
        found = self.app.broker.peek(queue)
        return [decode_call(each.message or decode_envelope(each.raw)) for each in found]

    def purge(self) -> None:
        self.app.broker.purge("celery", Place.READY)


def cli_of(page: str) -> str:
    found = re.search(r'<section class="card" id="preview">.*?<pre class="cli[^>]*>([^<]*)</pre>', page, re.S)
    assert found is not None
    return html.unescape(found[1])


def changes(page: str) -> list[str]:
    """Return the lines of the differences, without their colours."""
    return [html.unescape(line) for line in re.findall(r'<span class="(?:was|will)">([^<]*)\n</span>', page)]


def make(tmp_path: Path, url: str, key: str | None = None) -> tuple[Any, str]:
    name = "shop_" + re.sub(r"\W", "_", tmp_path.name)
    results = f"sqlite:///{tmp_path}/results.db" if url.startswith("amqp") else url
    (tmp_path / f"{name}.py").write_text(SHOP.format(url=url, results=results, key=key))
    sys.path.insert(0, str(tmp_path))
    try:
        app = find_app(name, Umbel)
    finally:
        sys.path.remove(str(tmp_path))
    app.conf.history_file = str(tmp_path / "history.db")
    return app, name


@pytest.fixture(params=["sqlite_url", "redis_url"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    app, name = make(tmp_path, request.getfixturevalue(request.param))
    with served(app) as server:
        yield Shop(app, server, name, tmp_path)
    app.close()


@pytest.fixture(params=["sqlite_url", "redis_url", "rabbitmq_url"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    app, name = make(tmp_path, request.getfixturevalue(request.param))
    with served(app) as server:
        yield Shop(app, server, name, tmp_path)
    app.close()


# -- a task ------------------------------------------------------------------------------------------------------


def test_a_task_is_changed_and_sent_as_a_new_one(shop: Shop) -> None:
    history = shop.server.site.recording.history
    assert history is not None
    with shop.worker():
        eventually(lambda: "w1@box" in shop.server.site.live.alive)
        first = shop.app.send_task("kind", args=[BIG], kwargs={"at": WHEN, "name": "Zoë"})
        assert first.get(timeout=DEADLINE) == ["int", str(BIG)]
        eventually(lambda: (row := history.task(first.id)) is not None and row.ready)
        page = f"/task?id={first.id}"
        assert f"/task/edit?id={first.id}" in shop.get(page)
        form = shop.fields(shop.get(f"/task/edit?id={first.id}"), "/tasks/preview")
        assert json.loads(form["args"]) == [BIG] and json.loads(form["kwargs"]) == {"at": WHEN, "name": "Zoë"}
        shown, after = shop.edit(f"/task/edit?id={first.id}", args=f"[{BIG + 1}]")
        assert changes(shown) == [f"-   {BIG}", f"+   {BIG + 1}"]
        assert cli_of(shown) == f"umbel -A shop tasks retry {first.id} -a '[{BIG + 1}]'"
        new = re.search(r"Sent as ([0-9a-f-]{36})\.", after)
        assert new is not None and new[1] != first.id
        assert shop.app.AsyncResult(new[1]).get(timeout=DEADLINE) == ["int", str(BIG + 1)]
        shown, after = shop.edit(f"/task/edit?id={first.id}", args=json.dumps([WHEN]), kwargs="{}")
        new = re.search(r"Sent as ([0-9a-f-]{36})\.", after)
        assert new is not None
        assert shop.app.AsyncResult(new[1]).get(timeout=DEADLINE) == ["datetime", "2030-01-31 18:00:00+01:00"]
    audit = shop.get("/audit")
    assert "tasks.edit" in audit and first.id in audit and "tasks.preview" not in audit


def test_where_it_goes_and_which_it_repeats(shop: Shop) -> None:
    sent = shop.app.send_task("add", args=[1, 2])
    shown, _ = shop.edit(f"/task/edit?id={sent.id}", args="[3, 4]", queue="other")
    assert "may run as well" in shown and "--queue other" in cli_of(shown)
    (call,) = shop.calls("other")
    assert call.id != sent.id and list(call.args) == [3, 4]
    assert (call.headers[REPLAY_OF], call.headers["root_id"], call.headers["parent_id"]) == (sent.id, call.id, None)
    shop.edit(f"/task/edit?id={sent.id}", countdown="3600")
    assert (shop.app.broker.size("celery", Place.SCHEDULED), len(shop.calls())) == (1, 1)


def test_what_cannot_be_sent_is_refused_before(shop: Shop) -> None:
    sent = shop.app.send_task("add", args=[1, 2])
    for given, said in (
        ({"args": "[1]"}, "add does not take these arguments: add() missing a required argument"),
        ({"kwargs": '{"z": 1}'}, "does not take these arguments"),
        ({"args": "[1, 2"}, "args is not JSON"),
        ({"args": "{}"}, "JSON list"),
        ({"kwargs": "[]"}, "JSON object"),
        ({"args": '[1, {"__type__": "none", "__value__": 1}]'}, "unknown type tag"),
        ({"args": '[1, "***"]'}, "stands for a value that is hidden"),
        ({"countdown": "soon"}, "number of seconds"),
        ({"countdown": "-1"}, "from 0 to"),
        ({"countdown": "nan"}, "from 0 to"),
        ({"countdown": "1e300"}, "from 0 to"),
    ):
        form = {"id": sent.id, "args": "[1, 2]", "kwargs": "{}", "queue": "celery", "countdown": "", **given}
        for path in ("/tasks/preview", "/tasks/edit"):
            answer = shop.post(path, **form)
            assert answer.status == 400 and said in html.unescape(answer.text), (path, given, answer.text)
    assert len(shop.calls()) == 1 and shop.app.broker.size("celery", Place.SCHEDULED) == 0
    assert shop.visitor.get("/task/edit?id=nobody").status == 404
    assert shop.visitor.post("/tasks/edit", {"id": sent.id, "args": "[1, 2]"}).status == 403, "without a token"


def test_what_is_hidden_stays_as_it_is_while_the_message_is_there(shop: Shop) -> None:
    sent = shop.app.tasks["pay"].delay("4111-1111", 5)
    page = shop.get(f"/task/edit?id={sent.id}")
    form = shop.fields(page, "/tasks/preview")
    assert json.loads(form["args"]) == [HIDDEN, 5] and "4111" not in page
    shown, _ = shop.edit(f"/task/edit?id={sent.id}", args=json.dumps([HIDDEN, 6]), queue="other")
    assert "4111" not in shown and "***" in cli_of(shown)
    (call,) = shop.calls("other")
    assert list(call.args) == ["4111-1111", 6] and "4111" not in str(call.headers)
    moved = shop.post("/tasks/preview", id=sent.id, args=json.dumps([6]), kwargs=json.dumps({"card": HIDDEN}))
    assert moved.status == 400 and "write the value itself" in moved.text
    # The same in a terminal.
    done = shop.umbel("tasks", "retry", sent.id, "-a", '["***", 7]', "--queue", "third")
    assert done.returncode == 0, done.stderr
    assert [list(each.args) for each in shop.calls("third")] == [["4111-1111", 7]]


def test_what_was_never_kept_cannot_be_edited_from_its_redacted_form(shop: Shop) -> None:
    history = shop.server.site.recording.history
    assert history is not None
    with shop.worker():
        eventually(lambda: "w1@box" in shop.server.site.live.alive)
        sent = shop.app.tasks["pay"].delay("4111-1111", 5)
        assert sent.get(timeout=DEADLINE) == "5 by 4111-1111"
        eventually(lambda: (row := history.task(sent.id)) is not None and row.ready)
    page = shop.get(f"/task/edit?id={sent.id}")
    assert "sensitive and was not kept" in page and "All of them have to be given" in page
    form = shop.fields(page, "/tasks/preview")
    assert form["args"] == form["kwargs"] == ""
    for args, said in ((json.dumps([HIDDEN, 5]), "write the value itself"), ("", "was not kept")):
        refused = shop.post("/tasks/edit", id=sent.id, args=args, kwargs="{}")
        assert refused.status == 400 and said in refused.text
    refused = shop.post("/tasks/edit", id=sent.id, queue="other")
    assert refused.status == 400
    told = shop.umbel("tasks", "retry", sent.id, "-a", '["***", 5]', "-k", "{}")
    assert told.returncode == 1 and "stands for a value that is hidden" in told.stderr
    told = shop.umbel("tasks", "retry", sent.id, "--countdown", "5")
    assert told.returncode == 1 and "sensitive and was not kept" in told.stderr
    assert shop.calls() == shop.calls("other") == []
    shop.edit(f"/task/edit?id={sent.id}", args=json.dumps(["4222-2222", 5]), kwargs="{}")
    assert [list(each.args) for each in shop.calls()] == [["4222-2222", 5]]


def test_the_terminal_changes_a_task(shop: Shop) -> None:
    sent = shop.app.send_task("add", args=[1], kwargs={"y": BIG})
    done = shop.umbel("tasks", "retry", sent.id, "--args", "[2]", "--countdown", "0", "-o", "json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["data"]
    new = next(each for each in shop.calls() if each.id == row["new_id"])
    assert (row["id"], list(new.args), new.kwargs, new.headers[REPLAY_OF]) == (sent.id, [2], {"y": BIG}, sent.id)
    before = len(shop.calls())
    for words, code, said in (
        (("--args", "[1, 2, 3]"), 1, "add()"),
        (("--args", "{}"), 2, "JSON list"),
        (("--countdown", "-3"), 1, "from 0 to"),
        (("--kwargs", "{}"), 1, "missing a required argument"),
        (("--dry-run", "--kwargs", '{"y": 5}'), 0, "would be sent"),
        (("--where", "add", "--queue", "x"), 2, "for one task"),
    ):
        told = shop.umbel("tasks", "retry", sent.id, *words)
        assert told.returncode == code and said in told.stderr, (words, told.stderr)
    told = shop.umbel("tasks", "retry", "nobody", "--args", "[1, 2]")
    assert told.returncode == 1 and "knows it" in told.stderr
    assert len(shop.calls()) == before


# -- a dead letter -----------------------------------------------------------------------------------------------


def test_a_letter_is_changed_and_is_gone_with_that(anywhere: Shop) -> None:
    shop = anywhere
    letter = shop.bury("add", 1, kwargs={"z": WHEN})
    page = f"/dead/letter/edit?id={letter.id.replace(':', '%3A')}"
    assert "/dead/letter/edit?id=" in shop.get(f"/dead/letter?id={letter.id}")
    wrong = shop.post("/dead/preview", id=letter.id, args="[1]", kwargs="{}")
    assert wrong.status == 400 and "does not take these arguments" in wrong.text and "Nothing was sent" in wrong.text
    assert len(shop.app.dead.list()) == 1
    shown, after = shop.edit(page, args=f"[{BIG}]", kwargs='{"y": 1}', queue="other")
    assert changes(shown)[:2] == ["-   1", f"+   {BIG}"]
    assert cli_of(shown).startswith(f"umbel -A shop dead requeue {letter.id} -a ")
    assert cli_of(shown).endswith("--to other")
    assert f"{letter.task_id} was put back" in after
    assert shop.app.dead.list() == [] and shop.app.broker.size("celery") == 0
    with shop.worker("other"):
        assert shop.app.AsyncResult(letter.task_id).get(timeout=DEADLINE) == BIG + 1
    gone = shop.post("/dead/edit", id=letter.id, args="[1]", kwargs='{"y": 1}')
    assert gone.status == 404
    assert "dead.edit" in shop.get("/audit")


def test_a_letter_waits_for_its_countdown(shop: Shop) -> None:
    letter = shop.bury("add", 1, 2)
    shop.edit(f"/dead/letter/edit?id={letter.id}", countdown="3600")
    assert shop.app.dead.list() == []
    with shop.worker():
        # A worker that meets it puts it into the schedule.
        eventually(lambda: shop.app.broker.size("celery", Place.SCHEDULED) == 1)
    assert shop.app.AsyncResult(letter.task_id).state == "PENDING"


def test_of_many_who_put_it_back_one_does(anywhere: Shop) -> None:
    letter = anywhere.bury("add", 1)
    done: list[bool] = []

    def put(number: int) -> None:
        done.append(anywhere.app.dead.requeue_edited(letter, [number], {"y": 0}))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(done) == [False] * 5 + [True]
    eventually(lambda: anywhere.app.broker.size("celery") == 1)
    assert anywhere.app.dead.list() == []


def test_the_page_of_a_dead_task_leads_to_its_letter(shop: Shop) -> None:
    letter = shop.bury("add", 1)
    answer = shop.visitor.get(f"/task/edit?id={letter.task_id}")
    assert answer.status == 303 and "/dead/letter/edit?id=" in answer.headers["location"]
    done = shop.umbel("tasks", "retry", letter.task_id, "-a", "[1, 5]")
    assert done.returncode == 0, done.stderr
    (call,) = shop.calls()
    assert (call.id, list(call.args)) == (letter.task_id, [1, 5]) and shop.app.dead.list() == []


def test_what_is_hidden_in_a_letter_stays_as_it_is(shop: Shop) -> None:
    letter = shop.bury("pay", "4111-1111", 5)
    page = shop.get(f"/dead/letter/edit?id={letter.id}")
    assert json.loads(shop.fields(page, "/dead/preview")["args"]) == [HIDDEN, 5] and "4111" not in page
    shop.edit(f"/dead/letter/edit?id={letter.id}", args=json.dumps([HIDDEN, 9]))
    (call,) = shop.calls()
    assert list(call.args) == ["4111-1111", 9] and "4111" not in str(call.headers)


def test_what_is_hidden_of_a_task_that_is_not_known_here_is_never_shown(shop: Shop) -> None:
    hidden = {"argsrepr": HIDDEN, "kwargsrepr": HIDDEN}
    letter = shop.bury("theirs", "4111-1111", 5, **hidden)
    page = shop.get(f"/dead/letter/edit?id={letter.id}")
    assert "4111" not in page and "none is shown" in page
    shown, _ = shop.edit(f"/dead/letter/edit?id={letter.id}", countdown="0")
    assert "4111" not in shown
    (call,) = shop.calls()
    assert list(call.args) == ["4111-1111", 5] and call.headers["argsrepr"] == HIDDEN
    done = shop.umbel("tasks", "retry", letter.task_id, "-k", '{"amount": 3}', "--queue", "third")
    assert done.returncode == 0, done.stderr
    (call,) = shop.calls("third")
    assert list(call.args) == ["4111-1111", 5] and call.kwargs == {"amount": 3} and "4111" not in str(call.headers)


def test_the_terminal_changes_a_letter(shop: Shop) -> None:
    letter = shop.bury("add", 1)
    for words, code, said in (
        (("-a", "[1]"), 1, "missing a required argument"),
        (("-a", "[1, 2]", "--dry-run"), 0, "1 dead letter would be requeued"),
        (("--countdown", "-1", "-a", "[1, 2]"), 1, "from 0 to"),
    ):
        told = shop.umbel("dead", "requeue", letter.id, *words)
        assert told.returncode == code and said in told.stderr, (words, told.stderr)
    told = shop.umbel("dead", "requeue", "--all", "--to", "other")
    assert told.returncode == 2 and "give its id" in told.stderr
    assert len(shop.app.dead.list()) == 1
    done = shop.umbel("dead", "requeue", letter.id, "--args", "[1]", "--kwargs", '{"y": 2}', "--to", "other")
    assert done.returncode == 0, done.stderr
    (call,) = shop.calls("other")
    assert (call.id, list(call.args), call.kwargs) == (letter.task_id, [1], {"y": 2})


def test_a_message_of_protocol_1_is_edited_too(shop: Shop) -> None:
    shop.app.conf.task_protocol = 1
    letter = shop.bury("add", 1)
    assert letter.message is not None and "task" not in letter.message.headers
    assert shop.app.dead.requeue_edited(letter, [1, 2])
    (call,) = shop.calls()
    assert (call.task, call.id, list(call.args)) == ("add", letter.task_id or call.id, [1, 2])
    with shop.worker():
        assert shop.app.AsyncResult(call.id).get(timeout=DEADLINE) == 3


# -- signatures, roles and hostile names -------------------------------------------------------------------------


def test_what_is_signed_is_signed_anew(tmp_path: Path, sqlite_url: str) -> None:
    app, name = make(tmp_path, sqlite_url, "k" * 43)
    keys = keyring_of(app.conf)
    assert keys is not None
    with served(app) as server:
        shop = Shop(app, server, name, tmp_path)
        letter = shop.bury("add", 1)
        shop.edit(f"/dead/letter/edit?id={letter.id}", args="[1, 2]", queue="other")
        sent = app.send_task("add", args=[1, 2])
        shop.edit(f"/task/edit?id={sent.id}", args="[3, 4]", queue="other")
        found = [decode_envelope(each.raw) for each in app.broker.peek("other")]
        assert [keys.refusal(each, "other") for each in found] == [None, None]
        assert all(keys.refusal(each, "celery") is not None for each in found)
        stranger = Umbel("stranger", broker=sqlite_url, set_as_current=False)
        forged = stranger.send_task("add", args=[6, 6])
        stranger.close()
        assert shop.visitor.get(f"/task/edit?id={forged.id}").status == 404, "nobody gets a signature by editing"
    app.close()


def test_viewers_change_nothing(tmp_path: Path, sqlite_url: str) -> None:
    app, name = make(tmp_path, sqlite_url)
    accounts = read_accounts(f"vic:viewer:{hash_password('correct horse')}", "accounts")
    with served(app, Access(accounts=accounts, hosts=())) as server:
        shop = Shop(app, server, name, tmp_path)
        letter = shop.bury("add", 1)
        sent = app.send_task("add", args=[1, 2])
        assert shop.visitor.sign_in("vic", "correct horse").status == 303
        token = shop.visitor.get("/dead").token
        for path in (f"/task/edit?id={sent.id}", f"/dead/letter/edit?id={letter.id}"):
            assert shop.visitor.get(path).status == 403
        for path in ("/tasks/preview", "/tasks/edit", "/dead/preview", "/dead/edit"):
            form = {"token": token, "id": letter.id if path.startswith("/dead") else sent.id, "args": "[5, 5]"}
            assert shop.visitor.post(path, {**form, "kwargs": "{}"}).status == 403, path
        assert "Edit" not in shop.get(f"/dead/letter?id={letter.id}")
        assert len(app.dead.list()) == 1 and len(shop.calls()) == 1
    app.close()


def test_hostile_names_stay_text(shop: Shop) -> None:
    sent = shop.app.send_task(HOSTILE, args=[HOSTILE], kwargs={HOSTILE: HOSTILE}, task_id=HOSTILE)
    page = f"/task/edit?id={quote(HOSTILE)}"
    shown, after = shop.edit(page, args=json.dumps([HOSTILE + "</textarea><script>"]), queue=HOSTILE)
    for text in (shop.get(page), shown, after):
        assert "<script>window" not in text and "1337" not in text and "</textarea><script>" not in text
    (call,) = shop.calls(HOSTILE)
    assert list(call.args) == [HOSTILE + "</textarea><script>"] and call.headers[REPLAY_OF] == sent.id
