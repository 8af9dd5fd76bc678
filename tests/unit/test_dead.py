"""``app.dead`` and ``umbel dead``: finding dead letters, putting them back, deleting them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from umbel import Umbel
from umbel.cli.main import cli
from umbel.dead import PARKED, DeadLetter
from umbel.interfaces import Dead, Delivery, Place, Settlement
from umbel.message import decode_call, decode_envelope
from umbel.signing import keyring_of

NEVER = "2000-01-01T00:00:00+00:00"


class Morgue:
    """An app on a file of its own, and a way to have its messages die."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.url = url
        self.app = Umbel("morgue", broker=url, backend=url, set_as_current=False, **settings)
        self._opened: list[Any] = []

    def close(self) -> None:
        for opened in reversed(self._opened):
            opened.close()
        self.app.close()

    def send(self, name: str, *args: Any, queue: str = "celery", **options: Any) -> str:
        return str(self.app.send_task(name, args=args, queue=queue, **options).id)

    def take(self, queue: str = "celery") -> tuple[Any, list[Delivery]]:
        leases = self.app.broker.leases()
        consumer = self.app.broker.consumer(leases.register("w1@box"), [queue])
        self._opened += [leases, consumer]
        return consumer, list(consumer.reserve(100))

    def bury(self, reason: str = "rejected", queue: str = "celery") -> None:
        """Make dead letters of all that waits."""
        consumer, held = self.take(queue)
        how = Dead(reason, f"because of {reason}", "Traceback (most recent call last):\n")
        consumer.settle([Settlement(delivery=each, how=how) for each in held])

    def one(self, name: str = "job", *args: Any, reason: str = "rejected", **options: Any) -> DeadLetter:
        id = self.send(name, *args, **options)
        self.bury(reason, options.get("queue", "celery"))
        letter = self.app.dead.get(id)
        assert letter is not None
        return letter

    def count(self, place: Place, queue: str = "celery") -> int:
        return self.app.broker.size(queue, place)


@pytest.fixture
def morgue(sqlite_url: str) -> Iterator[Morgue]:
    made = Morgue(sqlite_url)
    yield made
    made.close()


# -- the Python API ----------------------------------------------------------------------------------------------


def test_a_letter_tells_what_it_knows(morgue: Morgue) -> None:
    before = datetime.now(UTC)
    letter = morgue.one("proj.add", 2, "ü")
    assert (letter.task, letter.queue, letter.reason, letter.retries) == ("proj.add", "celery", "rejected", 0)
    assert (letter.detail, letter.traceback) == ("because of rejected", "Traceback (most recent call last):\n")
    assert before - timedelta(seconds=1) < letter.at < datetime.now(UTC) + timedelta(seconds=1)
    assert morgue.app.dead.arguments(letter) == ((2, "ü"), {})
    assert morgue.app.dead.get(letter.id) == letter == morgue.app.dead.get(letter.task_id)


def test_get_of_what_is_not_there(morgue: Morgue) -> None:
    letter = morgue.one()
    for id in ("", "nothing", "celery:", "celery:0", f"other:{letter.key}", f"celery:{int(letter.key) + 1}", ":"):
        assert morgue.app.dead.get(id) is None


def test_named_finds_those_that_are_there(morgue: Morgue, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        morgue.send("job", number)
    while morgue.count(Place.READY):
        morgue.bury()
    dead = morgue.app.dead
    mail = morgue.one(queue="mail")
    letters = dead.list(queue="celery")
    ids = [letter.id for letter in letters]
    assert len(letters) == 300 and dead.named(ids) == letters
    assert dead.named([ids[7], mail.id, ids[299], ids[7]]) == [letters[7], mail, letters[299]]
    assert dead.named(["", ":", "nothing", "celery:", "celery:0", letters[0].task_id, f"other:{letters[0].key}"]) == []
    assert dead.named([f"celery:{'9' * 19}", f"celery:{'9' * 5000}", f"celery:0{letters[0].key}"]) == []
    dead.discard(*letters[100:200])
    store, asked = type(morgue.app.broker.dead()), []
    page = store.page
    monkeypatch.setattr(store, "page", lambda *given, **how: asked.append(how["limit"]) or page(*given, **how))
    assert dead.named(ids[100:200]) == [] and asked == [100]
    asked.clear()
    assert dead.named(ids[::-1]) == letters[:199:-1] + letters[99::-1] and len(asked) == 2
    asked.clear()
    assert dead.named(ids[:1]) == letters[:1] and asked == [1], "one letter is not more than that"


def test_get_finds_the_latest_of_a_task(sqlite_url: str) -> None:
    morgue = Morgue(sqlite_url, publish_dedupe=0)
    first = morgue.one()
    second = morgue.one(task_id=first.task_id, retries=1)
    assert morgue.app.dead.get(first.task_id) == second != first
    morgue.close()


def test_list_is_narrowed_by_everything_at_once(morgue: Morgue) -> None:
    dead = morgue.app.dead
    a = morgue.one("proj.a", reason="expired")
    b = morgue.one("proj.b", queue="mail")
    c = morgue.one("other", queue="mail")
    assert dead.list() == [a, c, b]
    assert dead.list(queue="mail") == dead.list(queue=["mail"]) == [c, b]
    assert dead.list(queue=["mail", "celery", "nowhere"]) == [a, c, b]
    assert dead.list(task="proj.*") == [a, b]
    assert dead.list(task="proj.a") == [a]
    assert dead.list(task="proj.") == []
    assert dead.list(reason="rejected", task="proj.*") == [b]
    assert dead.list(limit=2) == [a, c]
    assert dead.list(since=b.at, until=c.at) == [b]
    assert dead.list(after=a.id) == [c, b]
    assert dead.list(after=c.id, limit=5) == [b]
    with pytest.raises(ValueError, match="no offset"):
        dead.list(since=datetime(2030, 1, 1))


def test_list_goes_through_all_pages(morgue: Morgue) -> None:
    ids = [morgue.send("job", number) for number in range(250)]
    morgue.bury()
    morgue.bury()
    morgue.bury()
    assert [letter.task_id for letter in morgue.app.dead.list()] == ids[::-1]


def test_requeue_puts_back_and_says_which(morgue: Morgue) -> None:
    first, second, third = morgue.one(), morgue.one(), morgue.one(queue="mail")
    dead = morgue.app.dead
    assert dead.requeue(third, first) == [third, first]
    assert dead.requeue(first) == []
    assert dead.list() == [second]
    assert (morgue.count(Place.READY), morgue.count(Place.READY, "mail")) == (1, 1)
    _, (held,) = morgue.take()
    assert (held.raw, held.count) == (first.raw, 1)
    assert dead.requeue() == []


def test_discard_deletes_and_says_which(morgue: Morgue) -> None:
    first, second = morgue.one(), morgue.one()
    dead = morgue.app.dead
    assert dead.discard(second) == [second]
    assert dead.discard(second) == dead.requeue(second) == []
    assert dead.list() == [first]
    assert morgue.count(Place.READY) == 0


def test_many_go_back_in_the_order_in_which_they_died(morgue: Morgue) -> None:
    ids = [morgue.send("job", number) for number in range(130)]
    morgue.bury()
    morgue.bury()
    letters = morgue.app.dead.list()
    assert len(morgue.app.dead.requeue(*letters)) == 130
    raws = [peeked.raw for peeked in morgue.app.broker.peek("celery", limit=200)]
    assert [decode_envelope(raw).headers["id"] for raw in raws] == ids


@pytest.mark.parametrize(
    ("reason", "options", "header", "after"),
    [
        ("expired", {"expires": NEVER}, "expires", None),
        ("exhausted", {"retries": 3}, "retries", 0),
        ("unregistered", {"headers": {PARKED: 4}}, PARKED, None),
        ("rejected", {"expires": NEVER}, "expires", NEVER),
        ("failed", {"retries": 3}, "retries", 3),
    ],
)
def test_what_a_letter_died_of_does_not_count_any_more(
    morgue: Morgue, reason: str, options: dict[str, Any], header: str, after: Any
) -> None:
    letter = morgue.one("job", 1, reason=reason, **options)
    morgue.app.dead.requeue(letter)
    _, (held,) = morgue.take()
    message = decode_envelope(held.raw)
    assert message.headers.get(header) == after
    assert letter.message is not None
    same = {name: value for name, value in letter.message.headers.items() if name != header}
    assert {name: value for name, value in message.headers.items() if name != header} == same
    assert decode_call(message).args == [1]


def test_a_signed_message_stays_a_signed_one(sqlite_url: str) -> None:
    morgue = Morgue(sqlite_url, security_key="a key of our own, 32 characters..")
    letter = morgue.one(reason="exhausted", retries=3)
    morgue.app.dead.requeue(letter)
    keys = keyring_of(morgue.app.conf)
    _, (held,) = morgue.take()
    message = decode_envelope(held.raw)
    assert keys is not None and message.headers["retries"] == 0
    assert keys.refusal(message, "celery") is None
    morgue.close()


def test_nobody_gets_a_signature_for_a_message_of_his_own(sqlite_url: str) -> None:
    stranger = Morgue(sqlite_url)
    letter = stranger.one(reason="exhausted", retries=3)
    morgue = Morgue(sqlite_url, security_key="a key of our own, 32 characters..")
    morgue.app.dead.requeue(letter)
    _, (held,) = morgue.take()
    assert held.raw == letter.raw
    morgue.close()
    stranger.close()


def test_a_letter_is_put_back_with_other_arguments(morgue: Morgue) -> None:
    letter = morgue.one("job", 1, kwargs={"a": 2}, reason="exhausted", retries=3, link=morgue.app.signature("next"))
    assert morgue.app.dead.requeue_edited(letter, ["één"], {"b": 9007199254740993})
    assert not morgue.app.dead.requeue_edited(letter, [], {}), "it is not there any more"
    (peeked,) = morgue.app.broker.peek("celery")
    call = decode_call(decode_envelope(peeked.raw))
    assert (call.id, list(call.args), call.kwargs, call.retries) == (
        letter.task_id,
        ["één"],
        {"b": 9007199254740993},
        0,
    )
    assert [each["task"] for each in call.callbacks or ()] == ["next"]
    assert call.headers["argsrepr"] == "('één',)"


def test_a_letter_is_not_put_back_with_what_its_task_does_not_take(morgue: Morgue) -> None:
    @morgue.app.task(name="job", bind=True, sensitive=("key",))
    def job(self: Any, x: int, key: str = "") -> None: ...

    letter = morgue.one("job", 1)
    for args, kwargs in (([], {}), ([1, 2, 3], {}), ([1], {"none": 1})):
        with pytest.raises(TypeError):
            morgue.app.dead.requeue_edited(letter, args, kwargs)
    assert morgue.count(Place.DEAD) == 1
    assert morgue.app.dead.requeue_edited(letter, [2], {"key": "canary"})
    (peeked,) = morgue.app.broker.peek("celery")
    assert "canary" not in str(decode_envelope(peeked.raw).headers)


def test_nobody_gets_a_signature_by_editing(sqlite_url: str) -> None:
    key = "k" * 43
    signed, unsigned = Morgue(sqlite_url, security_key=key), Morgue(sqlite_url)
    try:
        letter = unsigned.one()
        with pytest.raises(ValueError, match="not signed"):
            signed.app.dead.requeue_edited(letter, [], {})
        letter = signed.one("other")
        assert signed.app.dead.requeue_edited(letter, [7], {})
        (peeked,) = signed.app.broker.peek("celery")
        keys = keyring_of(signed.app.conf)
        assert keys is not None and keys.refusal(decode_envelope(peeked.raw), "celery") is None
    finally:
        signed.close()
        unsigned.close()


def test_bytes_that_are_no_message_can_be_moved_too(redis_url: str) -> None:
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.lpush("celery", b"\xff no message")
    morgue = Morgue(redis_url)
    morgue.bury("undecodable")
    (letter,) = morgue.app.dead.list()
    assert (letter.task, letter.task_id, letter.message, letter.raw) == ("", "", None, b"\xff no message")
    assert morgue.app.dead.arguments(letter) is None
    assert morgue.app.dead.get(letter.id) == letter
    assert morgue.app.dead.requeue(letter) == [letter]
    _, (held,) = morgue.take()
    assert held.raw == letter.raw
    morgue.close()


# -- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def shell(morgue: Morgue, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    before = dict(os.environ)

    def run(*args: str, answer: str | None = None) -> Result:
        if answer is not None:
            monkeypatch.setattr("umbel.cli.dead.sys.stdin.isatty", lambda: True, raising=False)
        return CliRunner().invoke(cli, ["-b", morgue.url, "dead", *args], prog_name="umbel", input=answer)

    yield run
    os.environ.clear()
    os.environ.update(before)


def test_list_prints_lines_with_tabs_into_a_pipe(morgue: Morgue, shell: Any) -> None:
    letter = morgue.one("proj.add", queue="mail")
    result = shell("list")
    assert result.exit_code == 0, result.output
    died = letter.at.isoformat(timespec="seconds")
    assert result.stdout == f"{letter.id}\t{died}\tproj.add\t{letter.task_id}\trejected\t0\n"


def test_list_prints_a_table(morgue: Morgue, shell: Any) -> None:
    morgue.one("proj.add")
    lines = shell("list", "-o", "table").stdout.splitlines()
    assert lines[0].split() == ["id", "died", "task", "task", "id", "reason", "crashes"]
    assert len(lines) == 2 and lines[1].endswith("rejected  0")


def test_list_of_nothing(shell: Any) -> None:
    for output in ("table", "plain", "jsonl"):
        result = shell("list", "-o", output)
        assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(shell("list", "-o", "json").stdout) == {"schema": "umbel.dead.list/1", "data": [], "next": None}


def test_list_as_json_goes_on_where_it_was_cut_off(morgue: Morgue, shell: Any) -> None:
    first, second, third = morgue.one(), morgue.one(), morgue.one()
    page = json.loads(shell("list", "-o", "json", "--limit", "2").stdout)
    assert [row["id"] for row in page["data"]] == [third.id, second.id]
    assert page["next"] == second.id
    page = json.loads(shell("list", "-o", "json", "--limit", "2", "--after", page["next"]).stdout)
    assert [row["id"] for row in page["data"]] == [first.id]
    assert page["next"] is None
    assert set(page["data"][0]) == {
        "id", "queue", "task", "task_id", "reason", "detail", "died_at", "retries", "crashes",
    }  # fmt: skip
    cut = shell("list", "--limit", "1")
    assert len(cut.stdout.splitlines()) == 1 and f"--after {third.id}" in cut.stderr


def test_filters_of_the_command_line(morgue: Morgue, shell: Any) -> None:
    a = morgue.one("proj.a", reason="expired")
    b = morgue.one("proj.b", queue="mail")

    def ids(*options: str) -> list[str]:
        return [line.split("\t")[0] for line in shell("list", *options).stdout.splitlines()]

    assert ids("--queue", "mail") == ids("-Q", "mail,none") == [b.id]
    assert ids("--task", "proj.*") == [a.id, b.id]
    assert ids("--reason", "expired") == [a.id]
    assert ids("--since", "1h") == ids("--since", "2000-01-01") == [a.id, b.id]
    assert ids("--older-than", "1h") == ids("--since", "2999-01-01T00:00+01:00") == []
    assert ids("--older-than", "0s", "--since", "1.5d") == [a.id, b.id]
    bad = shell("list", "--since", "yesterday")
    assert bad.exit_code == 2 and "neither an age" in bad.stderr


def test_show(morgue: Morgue, shell: Any) -> None:
    letter = morgue.one("proj.add", 2, "ü")
    for id in (letter.id, letter.task_id):
        result = shell("show", id)
        assert result.exit_code == 0, result.output
        assert "task:      proj.add" in result.stdout and '[2, "ü"]' in result.stdout
        assert result.stdout.endswith("Traceback (most recent call last):\n")
    body = json.loads(shell("show", letter.id, "-o", "json").stdout)
    assert body["schema"] == "umbel.dead.show/1"
    assert body["data"]["args"] == [2, "ü"] and body["data"]["kwargs"] == {}
    assert body["data"]["reason"] == "rejected"


def test_a_letter_that_is_not_there_is_exit_3(shell: Any) -> None:
    for verb in ("show", "requeue", "discard"):
        result = shell(verb, "nothing")
        assert result.exit_code == 3 and "no dead letter nothing" in result.stderr
    error = json.loads(shell("show", "nothing", "-o", "json").stderr)["error"]
    assert error == {
        "code": 3,
        "message": "no dead letter nothing",
        "hint": "`umbel dead list` names those there are",
        "docs": "docs/dead-letters.md",
    }


def test_requeue_and_discard_by_id(morgue: Morgue, shell: Any) -> None:
    first, second = morgue.one(), morgue.one()
    result = shell("requeue", first.task_id)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(first.id) and "1 dead letter requeued." in result.stderr
    assert (morgue.count(Place.READY), morgue.count(Place.DEAD)) == (1, 1)
    result = shell("discard", second.id, "-o", "json")
    assert result.exit_code == 0 and json.loads(result.stdout)["schema"] == "umbel.dead.discard/1"
    assert (morgue.count(Place.READY), morgue.count(Place.DEAD)) == (1, 0)


def test_requeue_with_other_arguments(morgue: Morgue, shell: Any) -> None:
    letter = morgue.one("job", 1, kwargs={"a": 2})
    other = morgue.one("job", 2)
    assert shell("requeue", "--all", "-a", "[1]").exit_code == 2
    assert shell("requeue", letter.id, other.id, "-a", "[1]").exit_code == 2
    assert shell("requeue", letter.id, "-a", "{}").exit_code == 2
    assert morgue.count(Place.DEAD) == 2
    assert shell("requeue", letter.id, "-a", "[5]").exit_code == 0
    (peeked,) = morgue.app.broker.peek("celery")
    call = decode_call(decode_envelope(peeked.raw))
    assert (list(call.args), call.kwargs) == ([5], {"a": 2}), "what is not given stays"


def test_partly_done_is_exit_5(morgue: Morgue, shell: Any) -> None:
    letter = morgue.one()
    result = shell("requeue", letter.id, "celery:999")
    assert result.exit_code == 5 and "1 not requeued, because they are not there: celery:999" in result.stderr
    assert morgue.count(Place.READY) == 1


def test_many_are_asked_about(morgue: Morgue, shell: Any) -> None:
    morgue.one(queue="mail")
    morgue.one()
    for verb in ("requeue", "discard"):
        refused = shell(verb, "--all")
        assert refused.exit_code == 4 and "--yes" in refused.stderr
    assert len(morgue.app.dead.list()) == 2
    assert shell("requeue", "--queue", "mail", "--yes").exit_code == 0
    assert (morgue.count(Place.READY, "mail"), morgue.count(Place.DEAD)) == (1, 1)
    assert shell("discard", "--all", "-y").exit_code == 0
    assert morgue.count(Place.DEAD) == 0


def test_dry_run_changes_nothing(morgue: Morgue, shell: Any) -> None:
    letter = morgue.one()
    for verb in ("requeue", "discard"):
        result = shell(verb, "--all", "--dry-run")
        assert result.exit_code == 0 and result.stdout.startswith(letter.id)
        assert f"1 dead letter would be {verb}" in result.stderr
    assert morgue.count(Place.DEAD) == 1


def test_a_reason_that_nothing_dies_of_is_a_usage_error(morgue: Morgue, shell: Any) -> None:
    morgue.one(reason="expired")
    for verb in (["list"], ["requeue", "--yes"], ["discard", "--yes"]):
        result = shell(*verb, "--reason", "expird")
        assert result.exit_code == 2 and "did you mean 'expired'?" in result.stderr, result.output
    assert "it is one of bad_signature, " in shell("list", "--reason", "nonsense").stderr
    assert morgue.count(Place.DEAD) == 1


def test_nothing_is_chosen_by_accident(morgue: Morgue, shell: Any) -> None:
    letter = morgue.one()
    assert shell("discard").exit_code == 2
    assert shell("discard", "--yes").exit_code == 2
    assert shell("discard", letter.id, "--all").exit_code == 2
    assert shell("discard", letter.id, "--reason", "rejected").exit_code == 2
    assert shell("discard", "--reason", "expired", "--yes").exit_code == 0
    assert morgue.count(Place.DEAD) == 1


def test_a_hostile_name_cannot_write_to_the_terminal(morgue: Morgue, shell: Any) -> None:
    letter = morgue.one("a\x1b[2J\nb\tc")
    for args in (("list",), ("list", "-o", "table"), ("show", letter.id)):
        out = shell(*args).stdout
        assert "\x1b" not in out and "a\\x1b[2J\\nb\\tc" in out
    assert json.loads(shell("show", letter.id, "-o", "json").stdout)["data"]["task"] == "a\x1b[2J\nb\tc"


def test_a_broker_that_is_away_is_exit_69() -> None:
    command = [sys.executable, "-m", "umbel", "-b", "redis://127.0.0.1:1/0", "dead", "list", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 69, done.stderr
    assert json.loads(done.stderr)["error"]["code"] == 69 and done.stdout == ""


def test_asking_takes_no_for_an_answer(morgue: Morgue, tmp_path: Path) -> None:
    """With a real terminal: nobody else is asked."""
    import pty

    morgue.one(queue="mail")
    for answer, code in ((b"n\n", 4), (b"y\n", 0)):
        controller, terminal = pty.openpty()
        os.write(controller, answer)
        command = [sys.executable, "-m", "umbel", "-b", morgue.url, "dead", "discard", "--all"]
        done = subprocess.run(
            command, stdin=terminal, capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path
        )
        os.close(controller)
        os.close(terminal)
        assert done.returncode == code, done.stderr
        assert "Discard 1 dead letters (1 of mail)?" in done.stderr
    assert morgue.app.dead.list() == []
