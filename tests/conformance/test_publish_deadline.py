"""``delay()`` when answers are lost or never come: against a real server, and one that says nothing."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from redis_support import Lossy
from umbel import Umbel
from umbel.brokers.memory import MemoryBroker
from umbel.exceptions import OperationalError, PublishUnknown

PATIENT = {"socket_timeout": 1000}


def shop(url: str, **settings: Any) -> Any:
    return Umbel("shop", broker=url, set_as_current=False, **settings)


def test_a_lost_confirmation_is_asked_for_again_and_the_task_is_queued_once(redis_url: str) -> None:
    with Lossy(redis_url) as lossy:
        app = shop(lossy.url)
        app.send_task("proj.add", (1,))
        lossy.lose_answer_to("EVALSHA")
        sent = app.send_task("proj.add", (2,), task_id="mine")
        assert sent.id == "mine"
        assert app.broker.size("celery") == 2
        lossy.lose_answer_to("EVALSHA")
        with pytest.raises(PublishUnknown) as caught:
            app.send_task("proj.add", (3,), task_id="unsure", retry=False)
        assert caught.value.task_id == "unsure"
        app.close()


def test_threads_that_meet_a_silent_server_do_not_wait_for_each_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        app = shop(url, publish_timeout=0.5, broker_connection_timeout=1000, broker_transport_options=PATIENT)
        refused: list[OperationalError] = []

        def send() -> None:
            with pytest.raises(OperationalError, match="Nothing was queued") as caught:
                app.send_task("proj.add", (1,))
            refused.append(caught.value)

        threads = [threading.Thread(target=send) for _ in range(10)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # One after the other they would take five seconds.
        assert time.monotonic() - started < 3.5
        assert len(refused) == 10
        app.close()


def test_of_brokers_that_are_opened_at_once_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    app = shop("memory://at-once")
    together = threading.Barrier(3)
    closed: list[Any] = []

    class Slow(MemoryBroker):
        def open(self) -> None:
            together.wait(10)

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(app, "make_broker", lambda: Slow("memory://at-once"))
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(app.broker)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [app.broker] * 3
    assert len(closed) == 2 and app.broker not in closed
    app.close()


def test_a_server_that_says_nothing_is_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://:s3cret@127.0.0.1:{silent.getsockname()[1]}/0"
        # Without the deadline this test would end by its own timeout.
        app = shop(url, publish_timeout=0.3, broker_connection_timeout=1000, broker_transport_options=PATIENT)
        with pytest.raises(OperationalError, match=r"timed out.*Nothing was queued") as caught:
            app.send_task("proj.add", (1,))
        assert "s3cret" not in str(caught.value)
        app.close()
