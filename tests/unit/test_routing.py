"""Which queue a task goes to."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from umbel.celery.entities import Broadcast, Queue
from umbel.exceptions import ImproperlyConfigured, QueueNotFound
from umbel.interfaces import QueueSpec
from umbel.routing import MapRoute, Router, _matches, queue_spec
from umbel.settings import Settings


def router(**settings: Any) -> Router:
    return Router(Settings(settings))


def queue_of(where: Router, name: str, **options: Any) -> str:
    merged = {**where.route(name, (), {}, options), **options}
    return where.destination(merged).queue.name


class TestRoutes:
    def test_without_any_the_default_queue(self) -> None:
        where = router(task_default_queue="orders").destination({})
        assert (where.queue.name, where.exchange, where.routing_key) == ("orders", "", "orders")
        assert (where.queue.exchange, where.queue.routing_key) == ("orders", "orders")

    @pytest.mark.parametrize(
        "routes",
        [
            {"feed.tasks.fetch": {"queue": "feeds"}},
            {"feed.tasks.fetch": "feeds"},
            {"feed.*": {"queue": "feeds"}},
            {"feed.tasks.fet?h": "feeds"},
            {re.compile(r"feed\..*"): "feeds"},
            [("feed.*", {"queue": "feeds"})],
            [{"other.*": "x"}, {"feed.*": "feeds"}],
            lambda name, args, kwargs, options, task=None, **_: {"queue": "feeds"} if "feed" in name else None,
            [lambda name, *args, **kwargs: "feeds"],
        ],
    )
    def test_every_form(self, routes: Any) -> None:
        where = router(task_routes=[routes] if isinstance(routes, list) and isinstance(routes[0], tuple) else routes)
        assert queue_of(where, "feed.tasks.fetch") == "feeds"

    def test_an_exact_name_wins_over_a_glob_before_it(self) -> None:
        where = router(task_routes={"a.*": "globs", "a.b": "exact"})
        assert queue_of(where, "a.b") == "exact"
        assert queue_of(where, "a.c") == "globs"
        assert queue_of(where, "b.c") == "celery"

    def test_the_old_router_class_and_a_name(self) -> None:
        class Old:
            def route_for_task(self, task: str, args: Any = None, kwargs: Any = None) -> Any:
                return {"queue": "old"} if task == "a" else None

        assert queue_of(router(task_routes=(Old,)), "a") == "old"
        assert queue_of(router(task_routes=f"{__name__}.named_route"), "a") == "named"

    def test_nonsense_is_refused(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="task_routes"):
            router(task_routes=[5])

    def test_only_tables_may_be_remembered(self) -> None:
        assert router(task_routes={"a": "b"}).static
        assert not router(task_routes=lambda *a, **k: None).static

    def test_what_the_caller_says_wins(self) -> None:
        assert queue_of(router(task_routes={"a": {"queue": "routed"}}), "a", queue="mine") == "mine"

    def test_a_route_is_a_copy_nobody_can_spoil(self) -> None:
        assert MapRoute({"a": {"queue": "q"}})("a") == {"queue": "q"}


def named_route(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> Any:
    return {"queue": "named"}


class TestQueues:
    def test_names_mappings_and_foreign_objects(self) -> None:
        exchange = SimpleNamespace(name="media", type="topic")
        foreign = SimpleNamespace(
            name="video", exchange=exchange, routing_key="media.video", queue_arguments={"x-max-priority": 5}
        )
        where = router(
            task_queues=[
                "plain",
                {"name": "mapped", "exchange": "e", "routing_key": "k"},
                QueueSpec(name="spec"),
                foreign,
            ]
        )
        declared = {spec.name: spec for spec in where.select()}
        assert list(declared) == ["plain", "mapped", "spec", "video"]
        assert (declared["plain"].exchange, declared["plain"].routing_key) == ("plain", "plain")
        assert (declared["mapped"].exchange, declared["mapped"].routing_key) == ("e", "k")
        assert declared["spec"].exchange == "celery"
        video = declared["video"]
        assert (video.exchange, video.exchange_type, video.max_priority) == ("media", "topic", 5)

    def test_the_dictionary_form(self) -> None:
        where = router(task_queues={"a": {"exchange": "x", "binding_key": "k"}, "b": None})
        assert [(spec.name, spec.routing_key) for spec in where.select()] == [("a", "k"), ("b", "celery")]

    @pytest.mark.parametrize("form", ["object", "mapping"])
    def test_kombu_s_limits_are_arguments_of_the_server(self, form: str) -> None:
        limits = {"expires": 1.5, "message_ttl": 60, "max_length": 10, "max_length_bytes": 2**20}
        given = (
            Queue("q", queue_arguments={"x-max-length": 5}, **limits) if form == "object" else {"name": "q", **limits}
        )
        assert queue_spec(given).arguments == {
            "x-expires": 1500, "x-message-ttl": 60_000, "x-max-length": 10, "x-max-length-bytes": 2**20,
        }  # fmt: skip
        assert queue_spec(Queue("q", expires=None)).arguments == {}

    def test_what_a_broadcast_does_not_do_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        spec = queue_spec(Broadcast("all"))
        assert (spec.exchange, spec.exchange_type) == ("all", "fanout")
        assert "a route with queue='all' does not lead to them" in caplog.text

    def test_a_queue_without_a_name_is_refused(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="no name"):
            queue_spec({"exchange": "x"})
        with pytest.raises(ImproperlyConfigured, match="not a queue"):
            queue_spec(5)

    def test_missing_ones_are_made_or_refused(self) -> None:
        assert router().queues["new"].routing_key == "new"
        closed = router(task_create_missing_queues=False, task_queues=["a", "b"])
        with pytest.raises(QueueNotFound, match=r"'new'.*a, b"):
            closed.queues["new"]
        with pytest.raises(QueueNotFound):
            queue_of(closed, "x")

    def test_select_and_exclude(self) -> None:
        where = router(task_queues=["a", "b"])
        assert [spec.name for spec in where.select("b, c")] == ["b", "c"]
        assert [spec.name for spec in where.select(["a", "a"])] == ["a"]
        assert [spec.name for spec in where.select(None, exclude="a")] == ["b"]

    def test_task_queue_max_priority(self) -> None:
        assert router(task_queue_max_priority=7).queues["new"].max_priority == 7

    def test_a_queue_object_may_be_an_option(self) -> None:
        where = router().destination({"queue": SimpleNamespace(name="obj", exchange=None, routing_key="")})
        assert (where.queue.name, where.routing_key) == ("obj", "obj")


class TestExchanges:
    TOPIC = [
        {"name": "video", "exchange": "media", "exchange_type": "topic", "routing_key": "media.video.#"},
        {"name": "image", "exchange": "media", "exchange_type": "topic", "routing_key": "*.image"},
    ]

    @pytest.mark.parametrize(
        ("key", "queue"),
        [("media.video", "video"), ("media.video.hd.x", "video"), ("media.image", "image"), ("a.b.image", "a.b.image")],
    )
    def test_a_key_leads_to_the_bound_queue(self, key: str, queue: str) -> None:
        where = router(task_queues=self.TOPIC).destination({"exchange": "media", "routing_key": key})
        assert (where.queue.name, where.exchange, where.routing_key) == (queue, "media", key)

    @pytest.mark.parametrize(
        ("pattern", "matching", "others"),
        [
            ("#.foo", ["foo", "a.foo", "a.b.foo"], ["foo.a", "afoo", ""]),
            ("foo.#", ["foo", "foo.a", "foo.a.b"], ["food", "a.foo"]),
            ("a.#.b", ["a.b", "a.x.b", "a.x.y.b", "a.b.b"], ["a", "ab", "a.b.c"]),
            ("#", ["", "a", "a.b"], []),
            ("*", ["a"], ["", "a.b"]),
            ("*.#.x", ["a.x", "a.b.x"], ["x"]),
            ("a+.*", ["a+.b"], ["aa.b"]),
            ("", [""], ["a"]),
        ],
    )
    def test_a_topic_pattern_is_one_of_words(self, pattern: str, matching: list[str], others: list[str]) -> None:
        spec = QueueSpec(name="q", exchange="e", exchange_type="topic", routing_key=pattern)
        assert [key for key in (*matching, *others) if _matches(spec, key)] == matching

    def test_a_topic_queue_is_reached_through_its_exchange(self) -> None:
        where = router(task_queues=self.TOPIC).destination({"queue": "image"})
        assert (where.exchange, where.routing_key) == ("media", "*.image")

    def test_a_direct_queue_is_reached_by_name(self) -> None:
        where = router(task_queues=[{"name": "q", "exchange": "e", "routing_key": "k"}]).destination({"queue": "q"})
        assert (where.exchange, where.routing_key) == ("", "q")
        where = router().destination({"queue": "q", "exchange": "e", "routing_key": "k"})
        assert (where.queue.name, where.exchange, where.routing_key) == ("q", "e", "k")
