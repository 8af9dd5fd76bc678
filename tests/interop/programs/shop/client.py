"""What the shop's web pages do: every scenario sends something and says what came of it."""

import datetime
import json
import os
import sys
import time
import uuid
from decimal import Decimal
from pathlib import Path

from celery import chain, chord, group, signature
from celery.exceptions import TimeoutError as Late
from celery.result import AsyncResult, GroupResult, result_from_tuple
from looking import WAIT, attempt, seen, until
from mail.jobs import alarm, logged, old_alarm, send
from orders import tasks as orders
from shop import celery_app as app
from shop import journal
from shop.types import Money
from stock import tasks as stock

SCENARIOS = {}
FLAGS = Path(os.environ["SHOP_FLAGS"])


def scenario(function):
    """Note a generator: it sends, yields while others send, and returns what it saw."""
    SCENARIOS[function.__name__] = function
    return function


def flag(name):
    return str(FLAGS / name)


def raise_flag(name):
    (FLAGS / name).write_text("")


# -- values and single tasks -----------------------------------------------------------------------------------------


@scenario
def values():
    things = [
        1,
        2.5,
        "näh",
        None,
        True,
        [1, [2]],
        (3, 4),
        {"k": "v"},
        Decimal("1.10"),
        uuid.UUID(int=5),
        datetime.datetime(2026, 1, 2, 3, 4, 5),
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        datetime.date(2026, 1, 2),
        datetime.time(3, 4),
        b"bytes",
        b"\xff\x00",
        Money(7),
    ]
    result = orders.place.delay(*things, note="x", when=datetime.date(2026, 5, 6))
    yield
    return seen(result)


@scenario
def returned_types():
    results = [orders.weird.delay(kind) for kind in ("set", "object", "bytes", "tuple", "text")]
    yield
    return [seen(result) for result in results]


@scenario
def own_serializer():
    results = [
        orders.price.apply_async(("tea",), serializer="mirror"),
        orders.refund.delay(Money(5)),
        orders.refund.delay(Decimal("2.50")),
        orders.price.apply_async(("tea",), {"count": 2}, serializer="mirror", compression="bzip2"),
        orders.price.apply_async(("tea",), compression="zlib"),
    ]
    yield
    return [seen(result) for result in results]


@scenario
def by_name():
    results = [
        app.send_task("orders.tasks.price", ("coffee",), {"count": 3}),
        stock.app.tasks["stock.order"].delay("pen"),
        app.signature("orders.tasks.price", args=("x",)).delay(),
        stock.reserve.delay("ink", 2),
    ]
    yield
    return [seen(result) for result in results]


@scenario
def routes():
    results = [
        send.delay("hello"),
        stock.item_count.delay("pens"),
        orders.price.apply_async(("tea",), queue="slow"),
        send.apply_async(("abroad",), {"country": "FR"}),
        orders.place.apply_async((1,), {"country": "FR"}),
        orders.price.apply_async(("a",), routing_key="orders", exchange="orders"),
        orders.price.apply_async(("b",), priority=5),
        stock.recount.apply_async((1,), queue="slow", priority=9),
    ]
    yield
    return [seen(result) for result in results]


@scenario
def options():
    results = [
        orders.price.apply_async(("tea",), headers={"shop": "rome", "deep": {"a": [1]}}),
        orders.price.apply_async(("tea",), shadow="shadowed"),
        orders.price.apply_async(("tea",), time_limit=30, soft_time_limit=20),
        orders.price.apply_async(("tea",), task_id="order-1"),
        orders.price.apply_async(("tea",), argsrepr="<hidden>", kwargsrepr="<also>"),
        logged.delay("text"),
    ]
    yield
    return [seen(result) for result in results]


@scenario
def later():
    now = datetime.datetime.now(datetime.UTC)
    results = [
        orders.price.apply_async(("tea",), countdown=1),
        orders.price.apply_async(("tea",), eta=now + datetime.timedelta(seconds=1)),
        orders.price.apply_async(("tea",), countdown=1, expires=60),
        orders.price.apply_async(("tea",), expires=now + datetime.timedelta(minutes=1)),
    ]
    yield
    return [seen(result) for result in results]


@scenario
def expired():
    now = datetime.datetime.now(datetime.UTC)
    results = [
        orders.price.apply_async(("late",), expires=now - datetime.timedelta(minutes=1)),
        orders.price.apply_async(("later",), countdown=1, expires=now + datetime.timedelta(seconds=0.2)),
    ]
    yield
    return [seen(result, wait=3) for result in results]


@scenario
def ignored():
    first, second = orders.audit.delay("x"), orders.price.apply_async(("tea",), ignore_result=True)
    third = orders.audit.apply_async(("kept",), ignore_result=False)
    yield
    time.sleep(0.3)
    return [seen(first), seen(second), seen(third), first.ignored, second.ignored]


@scenario
def limited():
    results = [stock.watch.delay(number) for number in range(3)]
    yield
    return [seen(result) for result in results]


# -- endings ---------------------------------------------------------------------------------------------------------


@scenario
def failures():
    results = [orders.check.delay("tea"), orders.decline.delay("1234"), orders.stumble.delay()]
    yield
    return [seen(result) for result in results] + [
        attempt(results[0].get, propagate=False),
        attempt(results[1].maybe_throw),
        results[1].result.__class__.__mro__[1].__name__,
    ]


@scenario
def autoretry():
    results = [orders.pay.delay(1, 1), orders.pay.delay(2, 9)]
    yield
    return [seen(result) for result in results]


@scenario
def retries():
    results = [orders.capture.delay(1, how) for how in ("exc", "plain", "changed", "returned")]
    yield
    return [seen(result) for result in results]


@scenario
def predicates():
    shipped, rejected = orders.end.delay("ignore"), orders.end.delay("reject")
    yield
    until(lambda: shipped.state == "SHIPPED")
    return [seen(shipped, wait=0), seen(rejected, wait=0)]


@scenario
def time_limits():
    results = [orders.slow_report.delay(True), orders.slow_report.delay(False), orders.stuck.delay()]
    yield
    return [seen(result) for result in results]


@scenario
def revoked():
    result = orders.price.apply_async(("never",), countdown=2)
    result.revoke()
    running = orders.ship.delay(flag("never"))
    until(lambda: running.state == "PROGRESS")
    running.revoke(terminate=True, signal="SIGTERM")
    yield
    return [seen(running), seen(result)]


@scenario
def aborted():
    result = stock.inventory.delay()
    yield
    time.sleep(0.3)
    result.abort()
    # What the task returns says that it saw it; it may have ended before anybody here could look.
    return [attempt(result.get, timeout=WAIT), result.state]


# -- canvases --------------------------------------------------------------------------------------------------------


@scenario
def chains():
    result = chain(orders.price.s("coffee"), orders.discount.s(50), orders.discount.s(percent=0)).apply_async()
    other = (orders.price.s("x") | orders.discount.si(10, 10) | send.s(to="shop")).delay()
    yield
    found = [seen(result), seen(result.parent), seen(result.parent.parent), seen(other)]
    root = result.parent.parent
    graph = root.graph
    found.append({"unordered": [[node.id, [edge.id for edge in graph[node]]] for node in graph]})
    found.append([[each.id, value] for each, value in root.collect()])
    found.append(journal.plain(result_from_tuple(result.as_tuple(), app=app).parent))
    found.append(root.get_leaf())
    return found


@scenario
def groups():
    result = group(orders.price.s(item) for item in ("a", "bb", "ccc")).apply_async()
    mixed = group(orders.price.s("a"), orders.decline.s("9")).apply_async()
    single = group(orders.price.s("one"))()
    result.save()
    yield
    found = [seen(result), seen(mixed), seen(single)]
    restored = GroupResult.restore(result.id, app=app)
    found.append([restored == result, restored.get(timeout=WAIT), [each.id for each in restored]])
    found.append(attempt(mixed.get, propagate=False, timeout=WAIT))
    found.append([list(map(journal.plain, mixed.join(propagate=False))), mixed.supports_native_join])
    return found


@scenario
def chords():
    result = chord([orders.price.s(item) for item in ("a", "bb")])(orders.total.s())
    piped = (group(orders.price.s(item) for item in ("a", "bb")) | orders.total.s() | orders.discount.s(0)).delay()
    within = chain(orders.price.s("abc"), group(orders.discount.s(0), orders.discount.s(100)), orders.total.s()).delay()
    yield
    return [seen(result), seen(result.parent), seen(piped), seen(piped.parent), seen(within), seen(within.parent)]


@scenario
def failing_chords():
    body = orders.total.s().on_error(alarm.s())
    result = chord([orders.price.s("a"), orders.decline.s("77")], body).apply_async()
    header = chord(
        [orders.decline.s("8").set(link_error=[old_alarm.s()]), orders.price.s("b")], orders.total.si([1])
    ).delay()
    yield
    return [seen(result), seen(result.parent), seen(header)]


@scenario
def links():
    result = orders.price.apply_async(("tea",), link=[send.s(to="a"), orders.discount.s(50)], link_error=alarm.s())
    failed = orders.decline.apply_async(("1",), link=send.s(), link_error=[alarm.s(), old_alarm.s()])
    broken = chain(orders.price.s("a"), orders.check.si("b"), send.s()).on_error(alarm.s()).delay()
    nested = orders.price.apply_async(("x",), link=group(send.s(to="b"), send.s(to="c")))
    yield
    return [seen(each) for each in (result, failed, broken, broken.parent, nested)]


@scenario
def replaced():
    results = [
        orders.checkout.delay(["a", "bb"]),
        orders.checkout_chain.delay("abcd"),
        chord([orders.checkout_chain.s("ab"), orders.price.s("c")], orders.total.s()).delay(),
        chain(orders.checkout.s(["a", "b"]), orders.discount.s(50)).delay(),
    ]
    yield
    return [seen(result) for result in results]


@scenario
def from_within():
    result = orders.split.delay(["a", "bb"])
    yield
    found = seen(result)
    until(lambda: all(child.ready() for child in result.children))
    return [found, [[type(each).__name__, journal.plain(value)] for each, value in result.collect()]]


@scenario
def maps():
    results = [
        orders.price.map(["a", "bb"]).delay(),
        orders.price.starmap([("a", 2), ("bb", 3)]).delay(),
        orders.price.chunks([("a", 1), ("b", 2), ("c", 3)], 2).group().apply_async(),
    ]
    yield
    return [seen(result) for result in results]


# -- progress, waiting, eager ----------------------------------------------------------------------------------------


@scenario
def progress():
    result = orders.ship.delay(flag("ship"))
    until(lambda: result.state == "PROGRESS" and result.info["done"] == 2)
    during = [seen(result, wait=0), attempt(result.get, timeout=0.2)]
    raise_flag("ship")
    yield
    return [during, seen(result)]


@scenario
def started():
    result = orders.tracked.delay(flag("track"))
    until(lambda: result.state == "STARTED")
    info = sorted(result.info)
    raise_flag("track")
    yield
    return [info, seen(result)]


@scenario
def callbacks_of_get():
    told = []
    result = group(orders.price.s(item) for item in ("x", "yy")).apply_async()
    single = orders.price.delay("zzz")
    yield
    value = result.join(timeout=WAIT, callback=lambda id, value: told.append([id, value]))
    callback = single.get(timeout=WAIT, callback=lambda id, value: told.append([id, value]))
    return [attempt(lambda: value), attempt(lambda: callback), told]


@scenario
def forgotten():
    result = orders.price.delay("f")
    yield
    value = result.get(timeout=WAIT)
    result.forget()
    other = AsyncResult(result.id, app=app)
    return [value, str(other.state), attempt(AsyncResult("unknown", app=app).get, timeout=0.1), Late.__name__]


@scenario
def eager():
    yield
    first, second = orders.price.apply(("tea",)), orders.decline.apply(("5",))
    return [
        attempt(first.get),
        str(first.state),
        attempt(second.get),
        str(second.state),
        (second.traceback or "").splitlines()[-1:],
        orders.price("direct"),
        attempt(orders.pay.apply((1, 1)).get),
        repr(first)[:13],
        attempt(chain(orders.price.s("ab"), orders.discount.s(50)).apply().get),
        attempt(group(orders.price.s("ab"), orders.price.s("c")).apply().get),
        attempt(chord([orders.price.s("ab")], orders.total.s()).apply().get),
    ]


@scenario
def refused():
    yield
    return [
        attempt(orders.price.delay),
        attempt(orders.price.delay, 1, 2, 3),
        attempt(orders.price.delay, object())["error"],
        attempt(orders.price.apply_async, ("a",), time_limit=1, soft_time_limit=2),
        attempt(orders.pay.retry),
        attempt(lambda: app.tasks["nowhere"])["error"],
    ]


@scenario
def written_down():
    yield
    entries = app.conf.beat_schedule
    return {
        "schedule": {name: [entry["task"], list(entry["args"])] for name, entry in sorted(entries.items())},
        "signature": json.loads(json.dumps(orders.price.s("a", count=2).set(countdown=3, queue="slow"))),
        "chain": json.loads(json.dumps(orders.price.s("a") | orders.discount.s(1))),
        "repr": [
            repr(orders.price.s("a") | orders.discount.s(1)),
            repr(group([orders.price.s("a")])),
            repr(orders.price),
            repr(chord([orders.price.s("a"), orders.price.s("b")], orders.total.s())),
        ],
        "again": attempt(lambda: signature(dict(orders.price.s("a", count=2)), app=app).delay().get(timeout=WAIT)),
        "task": [
            orders.pay.name,
            orders.pay.max_retries,
            orders.audit.ignore_result,
            stock.reserve.rate_limit,
            orders.price.default_retry_delay,
            orders.pay.autoretry_for[0].__name__,
        ],
        "registered": sorted(name for name in app.tasks if not name.startswith("celery.")),
        "conf": {
            name: journal.plain(getattr(app.conf, name))
            for name in (
                "timezone",
                "task_serializer",
                "result_expires",
                "task_default_queue",
                "accept_content",
                "result_extended",
                "task_queue_max_priority",
            )
        },
        "zone": str(app.timezone),
        "queues": {
            name: [queue.exchange.name, queue.exchange.type, queue.routing_key]
            for name, queue in sorted(app.amqp.queues.items())
        },
    }


@scenario
def remote():
    yield
    pongs = sorted(list(each) for each in app.control.ping(timeout=3, limit=2))
    inspect = app.control.inspect(timeout=3, limit=2)
    return {
        "pongs": pongs,
        "registered": {
            node: [name for name in names if "celery." not in name] for node, names in inspect.registered().items()
        },
        "queues": {node: sorted(queue["name"] for queue in queues) for node, queues in inspect.active_queues().items()},
        "stats": {node: sorted(stats["total"]) != [] for node, stats in inspect.stats().items()},
    }


def play(names):
    """Let all scenarios send, then let all of them look."""
    going, found = {}, {}
    for name in names:
        going[name] = SCENARIOS[name]()
    while going:
        for name, steps in list(going.items()):
            journal.scenario = name
            try:
                next(steps)
            except StopIteration as end:
                found[name] = journal.plain(end.value)
                del going[name]
            except Exception as error:
                found[name] = {"broke": repr(error)}
                del going[name]
    return found


if __name__ == "__main__":
    print(json.dumps(play(sys.argv[1:] or SCENARIOS)))
