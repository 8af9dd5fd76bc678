"""``umbel amqp`` beside ``celery amqp``, on one RabbitMQ: the same words, the same answers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import environment
from terminal_support import Terminal

SHELL = """\
exchange.declare shop direct
queue.declare orders
queue.bind orders shop new
basic.publish hello shop new
basic.publish "näh, nicht" "" orders
queue.declare orders true
basic.get orders
basic.ack 1
basic.get orders true
basic.get orders
basic.publish x "" orders
queue.purge orders
queue.delete orders
exchange.delete shop false
"""
ALONE = [
    ["queue.declare", "q", "false", "true"],
    ["exchange.declare", "x", "topic", "false", "true", "false"],
    ["queue.bind", "q", "x", "#.new"],
    ["basic.publish", "text", "x", "very.new"],
    ["basic.publish", "text", "x", "nobody", "false"],
    ["queue.declare", "q", "true"],
    ["basic.get", "q"],
    ["queue.purge", "q"],
    ["basic.get", "q"],
    ["queue.delete", "q", "true", "true"],
    ["exchange.delete", "x", "false"],
]


def amqp(module: str, url: str, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, "-b", url, "amqp", *words]
    return subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=60, check=False, env=environment()
    )


def answers(done: subprocess.CompletedProcess[str]) -> str:
    """What was answered, without the lines about the connection, whose URL is written in two ways."""
    assert done.stdout.startswith("-> connecting to amqp://guest:**@127.0.0.1:")
    assert "guest:guest" not in done.stdout
    return re.sub(r"-> connecting to .*\n-> connected.\n", "", done.stdout)


@pytest.mark.timeout(120)
def test_a_shell_answers_what_celery_answers(rabbitmq_url: str) -> None:
    ours = amqp("umbel", rabbitmq_url, given=SHELL)
    # Theirs does not wait until what it published is in the queue, and may look there too early.
    for _ in range(5):
        theirs = amqp("celery", rabbitmq_url, "repl", given=SHELL)
        if answers(theirs) == answers(ours):
            break
    assert (ours.returncode, ours.stderr) == (0, "")
    assert answers(ours) == answers(theirs)
    assert "'body': 'näh, nicht'" in ours.stdout and "No messages in queue." in ours.stdout
    assert answers(amqp("umbel", rabbitmq_url, "repl", given=SHELL)) == answers(theirs)


@pytest.mark.timeout(180)
def test_one_command_at_a_time_answers_what_celery_answers(rabbitmq_url: str) -> None:
    said = {module: [answers(amqp(module, rabbitmq_url, *words)) for words in ALONE] for module in ("celery", "umbel")}
    assert said["umbel"] == said["celery"]


def test_what_is_refused_is_said_and_ends_one_command_with_1(rabbitmq_url: str) -> None:
    done = amqp("umbel", rabbitmq_url, "queue.declare", "nowhere", "true")
    assert done.returncode == 1
    assert "Error: (404) NOT_FOUND - no queue 'nowhere' in vhost '/'" in done.stderr
    # Celery says OK to these three: nobody waits for the server's answer there.
    assert "no exchange 'nowhere'" in amqp("umbel", rabbitmq_url, "basic.publish", "x", "nowhere", "k").stderr
    assert "came back: (312) NO_ROUTE" in amqp("umbel", rabbitmq_url, "basic.publish", "x", "", "k", "true").stderr
    assert "unknown delivery tag 7" in amqp("umbel", rabbitmq_url, "basic.ack", "7").stderr
    immediate = amqp("umbel", rabbitmq_url, "basic.publish", "x", "", "k", "false", "true")
    assert (immediate.returncode, "no immediate publishing" in immediate.stderr) == (1, True)


def test_a_shell_goes_on_after_what_was_refused_or_misspelt(rabbitmq_url: str) -> None:
    given = "queue.declare nowhere true\nqueue.declar x\nqueue.declare\n'\n\nhelp\nhelp basic.get\nqueue.declare here\n"
    done = amqp("umbel", rabbitmq_url, given=given + ":exit\nqueue.declare beyond\n")
    assert done.returncode == 0
    assert "queue:here messages:0 consumers:0\nOK\n" in done.stdout and "beyond" not in done.stdout
    assert "Usage: umbel amqp [OPTIONS]" in done.stdout and "Usage: umbel amqp basic.get" in done.stdout
    for said in ("(404)", "No such command 'queue.declar'", "Missing argument 'QUEUE'", "No closing quotation"):
        assert said in done.stderr


def test_what_was_got_and_not_acknowledged_is_in_its_queue_again(rabbitmq_url: str) -> None:
    amqp("umbel", rabbitmq_url, given='queue.declare q\nbasic.publish a "" q\nbasic.publish b "" q\n')
    amqp("umbel", rabbitmq_url, given="basic.get q\nbasic.get q\nbasic.ack 2\n")
    again = amqp("umbel", rabbitmq_url, "basic.get", "q")
    assert "'body': 'a'" in again.stdout and "'redelivered': True" in again.stdout
    assert "messages:1 " in amqp("umbel", rabbitmq_url, "queue.declare", "q", "true").stdout


def test_bodies_that_are_no_text_are_shown_as_bytes(rabbitmq_url: str) -> None:
    import amqp as library  # type: ignore[import-untyped]

    host = rabbitmq_url.removeprefix("amqp://guest:guest@").partition("/")[0]
    with library.Connection(host) as connection:
        channel = connection.channel()
        channel.queue_declare("q", auto_delete=False)
        odd = {"content_encoding": "utf-8", "application_headers": {"lang": "py"}, "priority": 3}
        channel.basic_publish(library.Message(b"\xff\x00", **odd), routing_key="q")
    got = amqp("umbel", rabbitmq_url, "basic.get", "q", "true").stdout
    assert r"'body': b'\xff\x00'" in got
    assert "'application_headers': {'lang': 'py'}" in got and "'priority': 3" in got


def test_other_brokers_are_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    done = amqp("umbel", f"sqlite:///{tmp_path}/u.db", "queue.declare", "q")
    assert done.returncode == 78
    assert "these are RabbitMQ's commands, and the broker is sqlite:///" in done.stderr
    assert "umbel purge" in done.stderr


def test_a_server_that_is_away_is_69() -> None:
    done = amqp("umbel", "amqp://127.0.0.1:1", "queue.declare", "q")
    assert done.returncode == 69 and "RabbitMQ at 127.0.0.1:1" in done.stderr


def test_a_person_is_prompted_and_gets_names_completed(rabbitmq_url: str) -> None:
    with Terminal("-b", rabbitmq_url, "amqp", env=environment(TERM="dumb")) as terminal:
        terminal.until("amqp> ")
        terminal.type("queue.dec\tmine\n")
        terminal.until("queue:mine messages:0 consumers:0")
        terminal.until("amqp> ")
        # The first may come while the prompt is being set up, and be thrown away with what was typed before.
        for _ in range(5):
            terminal.type("\x03")
            if terminal.shows("amqp> ", 3.0):
                break
        terminal.type("quit\n")
        assert terminal.ended() == 0
