"""``delay()`` when answers are lost or never come: against a real server, and one that says nothing."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from redis_support import Lossy
from umbel import Umbel
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


def test_a_server_that_says_nothing_is_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://:s3cret@127.0.0.1:{silent.getsockname()[1]}/0"
        # Without the deadline this test would end by its own timeout.
        app = shop(url, publish_timeout=0.3, broker_connection_timeout=1000, broker_transport_options=PATIENT)
        with pytest.raises(OperationalError, match=r"timed out.*Nothing was queued") as caught:
            app.send_task("proj.add", (1,))
        assert "s3cret" not in str(caught.value)
        app.close()
