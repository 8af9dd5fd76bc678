"""S1: pickle, and whatever else runs what its writer wants, needs ``accept_unsafe`` as well as ``accept_content``."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostile import inject, make_app, peek, refusal, runs, task_message
from support import environment
from umbel import Umbel
from umbel import serialization as ours
from umbel.events.receiver import EventReceiver
from umbel.exceptions import ContentDisallowed, ImproperlyConfigured
from umbel.interfaces import Dead, Place, ResultRecord, Settlement
from umbel.settings import check
from umbel.worker.inprocess import start_worker
from umbel.worker.plan import make_plan

PICKLE = "application/x-python-serialize"


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = make_app(request.node.name, accept_content=["json", "pickle"])
    yield made
    made.close()


@pytest.fixture
def registry() -> Iterator[None]:
    """Forget what a test registers."""
    kept = dict(ours._by_name), dict(ours._by_content_type), set(ours._unsafe)
    yield
    for held, before in zip((ours._by_name, ours._by_content_type, ours._unsafe), kept, strict=True):
        held.clear()
        held.update(before)  # type: ignore[arg-type]


def test_s1_accept_content_alone_does_not_turn_pickle_on(app: Any, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = pickle.dumps([[Canary(canary)], {}, {}], protocol=4)
    assert refusal(app, task_message(bomb, content_type=PICKLE)) == "content_disallowed"
    app.conf.accept_content = [PICKLE, "json"]
    assert refusal(app, task_message(bomb, content_type=PICKLE)) == "content_disallowed"
    assert not canary.exists()
    app.conf.update(accept_unsafe=True, accept_content=["json", "pickle"])
    assert runs(app, task_message(bomb, content_type=PICKLE))
    assert canary.exists(), "the canary cannot sing"


def test_s1_accept_unsafe_alone_does_not_turn_it_on_either(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    app = make_app(request.node.name, accept_unsafe=True)
    bomb = pickle.dumps([[Canary(tmp_path / "canary")], {}, {}], protocol=4)
    assert refusal(app, task_message(bomb, content_type=PICKLE)) == "content_disallowed"
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("settings", [
    {"accept_content": ["pickle", "json"]}, {"accept_content": [PICKLE]}, {"task_serializer": "pickle"},
    {"result_serializer": "pickle"}, {"event_serializer": "pickle"}, {"result_accept_content": ["pickle"]},
])  # fmt: skip
def test_s1_a_worker_with_half_the_settings_does_not_start(settings: dict[str, Any]) -> None:
    app = Umbel("shop", broker="memory://half", set_as_current=False, **settings)
    (name,) = settings
    with pytest.raises(ImproperlyConfigured, match=rf"{name} names .*set accept_unsafe = True"):
        make_plan(app)
    app.conf.accept_unsafe = True
    check(app.conf)


@pytest.mark.parametrize("alias", [False, True], ids=["umbel", "alias"])
def test_s1_the_command_says_in_one_line_what_to_set(alias: bool, tmp_path: Path) -> None:
    text = (
        "app = {cls}('x', broker='sqlite:///x.db')\napp.config_from_object({{'accept_content': ['pickle', 'json']}})\n"
    )
    module, cls = ("celery", "Celery") if alias else ("umbel", "Umbel")
    (tmp_path / "shop.py").write_text(f"from {module} import {cls}\n" + text.format(cls=cls))
    command = [sys.executable, "-m", "umbel", *(["--as-celery"] if alias else []), "-A", "shop", "worker"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 78, done.stdout + done.stderr
    assert "accept_content names 'pickle'" in done.stderr
    assert "set accept_unsafe = True" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("source", "namespace"), [
    ({"CELERY_ACCEPT_CONTENT": ["pickle", "json"], "CELERY_ACCEPT_UNSAFE": True}, None),
    ({"CELERY_ACCEPT_CONTENT": ["pickle", "json"], "CELERY_ACCEPT_UNSAFE": "yes"}, "CELERY"),
    ({"accept_content": ["pickle", "json"], "accept_unsafe": True}, None),
])  # fmt: skip
def test_s1_the_switch_may_be_written_as_the_rest_is(source: dict[str, Any], namespace: str | None) -> None:
    app = Umbel("shop", broker="memory://names", set_as_current=False)
    app.config_from_object(source, namespace=namespace)
    check(app.conf)
    assert app.conf.accept_unsafe is True


def test_s1_a_client_sends_no_pickle_by_accident(app: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="serializer of task echo names 'pickle'.*accept_unsafe = True"):
        app.send_task("echo", [1], serializer="pickle")
    app.tasks["echo"].serializer = "pickle"
    with pytest.raises(ImproperlyConfigured, match="accept_unsafe"):
        app.tasks["echo"].delay(1)
    assert peek(app) == []
    app.conf.accept_unsafe = True
    with start_worker(app):
        assert app.send_task("echo", [(1, 2)], serializer="pickle").get(timeout=20) == [[[1, 2]], {}]


def test_s1_a_client_reads_no_pickled_result(app: Any, tmp_path: Path) -> None:
    app.conf.result_serializer = "pickle"
    document = {"status": "SUCCESS", "result": Canary(tmp_path / "canary"), "task_id": "x"}
    app.backend.store(ResultRecord(task_id="x", state="SUCCESS", payload=pickle.dumps(document)))
    with pytest.raises(ContentDisallowed, match="accept_unsafe = True"):
        app.AsyncResult("x").get(timeout=5)
    assert not (tmp_path / "canary").exists()


def test_s1_looking_at_dead_letters_reads_no_pickle(app: Any, tmp_path: Path) -> None:
    inject(app, task_message(pickle.dumps([[Canary(tmp_path / "canary")], {}, {}]), content_type=PICKLE))
    leases = app.broker.leases()
    consumer = app.broker.consumer(leases.register("w"), ["celery"])
    (held,) = consumer.reserve(1)
    consumer.settle([Settlement(delivery=held, how=Dead("rejected"))])
    consumer.close()
    leases.close()
    (letter,) = app.dead.list()
    assert app.dead.arguments(letter) is None
    assert not (tmp_path / "canary").exists()


def test_s1_events_in_pickle_are_not_read(app: Any) -> None:
    app.conf.event_serializer = "pickle"
    assert EventReceiver(None, app=app).accept == {"json"}
    assert EventReceiver(None, app=app, accept=["pickle", "json"]).accept == {"json"}
    app.conf.accept_unsafe = True
    assert EventReceiver(None, app=app).accept == {"json", "pickle"}


def test_s1_a_serializer_of_ones_own_can_be_called_unsafe(request: pytest.FixtureRequest, registry: None) -> None:
    ours.register("dill", json.dumps, json.loads, "application/x-dill", unsafe=True)
    app = make_app(request.node.name, accept_content=["json", "dill"])
    message = task_message(b"[[], {}, {}]", content_type="application/x-dill")
    assert refusal(app, message) == "content_disallowed"
    with pytest.raises(ImproperlyConfigured, match="'dill'"):
        app.send_task("echo", [], serializer="dill")
    app.conf.accept_unsafe = True
    assert runs(app, message)
    # What is put in pickle's place is not trusted for that.
    ours.register("pickle", json.dumps, json.loads, PICKLE)
    assert ours.is_unsafe("pickle")
    assert peek(app, Place.DEAD) == []
