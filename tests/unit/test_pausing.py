"""What is paused: kept in the store of an app, read once a second, and what a process gives back because of it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from umbel import Umbel
from umbel.exceptions import DecodeError, ImproperlyConfigured
from umbel.interfaces import Place
from umbel.pausing import KEY, LONGEST, Pause, Pauses
from umbel.worker.holding import Hold
from umbel.worker.runner import TaskRunner


@pytest.fixture(params=["memory", "sqlite", "redis"])
def app(request: pytest.FixtureRequest) -> Iterator[Umbel]:
    memory = f"memory://{uuid.uuid4().hex}"
    url = memory if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")
    made = Umbel("jobs", broker=url, set_as_current=False)
    yield made
    made.close()


def store(app: Umbel) -> Any:
    found = app.broker.store()
    assert found is not None
    return found


def test_a_queue_is_paused_and_resumed(app: Umbel) -> None:
    assert app.queues.paused() == {}
    made = app.queues.pause("mail", "the provider is down", by="ann")
    assert app.queues.paused() == {"mail": made}
    assert (made.by, made.why) == ("ann", "the provider is down")
    assert abs((app.clock.now() - made.at).total_seconds()) < 60
    assert "@" in app.queues.pause("video").by
    assert list(app.queues.paused()) == ["mail", "video"]
    assert app.queues.resume("mail") is True
    assert app.queues.resume("mail") is False
    assert list(app.queues.paused()) == ["video"]


def test_pausing_again_keeps_since_when(app: Umbel) -> None:
    first = app.queues.pause("mail", "one", by="ann")
    assert app.queues.pause("mail", by="bob") == first
    assert app.queues.pause("mail", "two", by="bob") == Pause(at=first.at, by="bob", why="two")


def test_those_who_pause_at_the_same_time_do_not_undo_each_other(app: Umbel) -> None:
    names = [f"q{number}" for number in range(8)]
    for name in names[:4]:
        app.queues.pause(name)
    wait = threading.Barrier(8)

    def change(name: str) -> None:
        wait.wait()
        if name in names[:4]:
            app.queues.resume(name)
        else:
            app.queues.pause(name)

    threads = [threading.Thread(target=change, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(app.queues.paused()) == names[4:]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * (LONGEST + 1)])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    app = Umbel("jobs", broker="memory://", set_as_current=False)
    with pytest.raises(ValueError, match="queue"):
        app.queues.pause(name)
    with pytest.raises(ValueError, match="a reason is one line"):
        app.queues.pause("mail", "one\ntwo")
    app.close()


def test_where_nothing_can_keep_it_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Umbel("jobs", broker="memory://", set_as_current=False)
    monkeypatch.setattr(type(app.broker), "store", lambda self: None)
    with pytest.raises(ImproperlyConfigured, match=r"memory://.* nor the result backend .there is none.* redis://"):
        app.queues.pause("mail")
    with pytest.raises(ImproperlyConfigured):
        app.queues.resume("mail")
    assert app.queues.paused() == {}
    app.close()


def test_a_worker_hears_of_each_change_once(app: Umbel) -> None:
    pauses = Pauses(store(app))
    assert not pauses.changed() and pauses.paused == {}
    app.queues.pause("mail", "down")
    assert pauses.changed() and list(pauses.paused) == ["mail"]
    assert not pauses.changed()
    app.queues.resume("mail")
    assert pauses.changed() and pauses.paused == {}


def test_a_store_that_was_emptied_is_read_anew(app: Umbel) -> None:
    pauses = Pauses(store(app))
    app.queues.pause("mail")
    assert pauses.changed()
    store(app).delete(KEY)
    assert pauses.changed() and pauses.paused == {}
    # By its version it could be taken for the value before.
    app.queues.pause("video")
    assert pauses.changed() and list(pauses.paused) == ["video"]


def test_what_cannot_be_read_leaves_everything_as_it_was(app: Umbel) -> None:
    pauses = Pauses(store(app))
    app.queues.pause("mail")
    assert pauses.changed()
    store(app).put(KEY, b"[1]")
    with pytest.raises(DecodeError, match="'paused'"):
        pauses.changed()
    assert not pauses.changed() and list(pauses.paused) == ["mail"]
    with pytest.raises(DecodeError):
        app.queues.paused()


def test_calling_it_returns_what_a_worker_reads() -> None:
    app = Umbel("jobs", broker="memory://", set_as_current=False)
    assert [spec.name for spec in app.queues()] == ["celery"]
    assert [spec.name for spec in app.queues("a,b")] == ["a", "b"]
    app.close()


def test_queues_are_known_by_routes_pauses_and_dead_letters(app: Umbel) -> None:
    app.conf.task_queues = {"mail": {}}
    app.conf.task_routes = [{"proj.film": {"queue": "film"}, "proj.*": "other"}, lambda *args, **options: None]
    app.queues.pause("held")
    assert app.queues.known() == ["film", "held", "mail", "other"]
    assert app.queues.readers() == {}
    store(app).put("worker:w1@box", b'{"queues": ["read"]}')
    store(app).put("worker:w2@box", b"not JSON")
    assert app.queues.readers() == {"w1@box": ["read"]}
    assert "read" in app.queues.known()


def test_what_has_not_started_goes_back_in_order(app: Umbel) -> None:
    @app.task(name="add")
    def add(x: int) -> int:
        return x

    for queue in ("mail", "video"):
        for number in range(4):
            add.apply_async((number,), queue=queue, task_id=f"{queue}{number}")
    leases = app.broker.leases()
    consumer = app.broker.consumer(leases.register("w1@box"), ["mail", "video"])
    try:
        hold = Hold(app, consumer, TaskRunner(app, hostname="w1@box"))
        hold.bind()
        hold.take(8)
        assert len(hold.ready) == 8
        hold.leave(["video"])
        assert [execution.delivery.queue for execution in hold.ready] == ["video"] * 4
        hold.settle()
        assert app.broker.size("mail") == 4 and app.broker.size("mail", Place.HELD) == 0
        assert app.broker.size("video", Place.HELD) == 4
        consumer.watch(["mail"])
        hold.take(8)
        mail = [each.call.id for each in hold.ready if each.delivery.queue == "mail"]
        assert mail == ["mail0", "mail1", "mail2", "mail3"]
        assert all(each.delivery.count == 1 for each in hold.ready)
    finally:
        consumer.close()
        leases.close()
