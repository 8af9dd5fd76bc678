from __future__ import annotations

import gc
import logging
from typing import Any

import pytest

from umbel import signals
from umbel.signals import Signal
from umbel.utils.proxy import Proxy


def test_there_are_celerys_34_signals() -> None:
    found = [value for value in vars(signals).values() if isinstance(value, Signal)]
    assert len(found) == 34
    assert all(vars(signals)[signal.name or ""] is signal for signal in found)


def test_send_calls_receivers_in_order_and_returns_their_answers() -> None:
    signal = Signal(name="s")
    calls = []

    def first(signal: Signal, sender: object, **named: Any) -> int:
        calls.append((signal, sender, named))
        return 1

    @signal.connect
    def second(**_: Any) -> int:
        return 2

    assert not Signal().send(None)
    signal.connect(first)
    assert signal.send("me", value=3) == [(second, 2), (first, 1)]
    assert calls == [(signal, "me", {"value": 3})]


def test_a_sender_filters_by_equal_text_and_by_identity() -> None:
    signal = Signal()
    seen: list[Any] = []
    sender = object()

    @signal.connect(sender="proj.add")
    def by_name(sender: Any, **_: Any) -> None:
        seen.append(("name", sender))

    @signal.connect(sender=sender)
    def by_object(sender: Any, **_: Any) -> None:
        seen.append(("object", sender))

    signal.send("".join(["proj", ".add"]))
    signal.send("proj.mul")
    signal.send(Proxy(lambda: sender))
    signal.send(object())
    assert [kind for kind, _ in seen] == ["name", "object"]
    assert signal.has_listeners(sender)
    assert not signal.has_listeners("proj.mul")


def test_what_a_receiver_raises_is_logged_and_returned(caplog: pytest.LogCaptureFixture) -> None:
    signal = Signal()

    @signal.connect
    def bad(**_: Any) -> None:
        raise ValueError("no")

    @signal.connect
    def good(**_: Any) -> str:
        return "yes"

    with caplog.at_level(logging.ERROR):
        (_, error), (_, answer) = signal.send_robust(None)
    assert isinstance(error, ValueError)
    assert answer == "yes"
    assert "raised: ValueError('no')" in caplog.text


def test_connecting_twice_counts_once_and_a_uid_stands_for_the_receiver() -> None:
    signal = Signal()

    def one(**_: Any) -> int:
        return 1

    def two(**_: Any) -> int:
        return 2

    signal.connect(one)
    signal.connect(one)
    assert len(signal.receivers) == 1
    signal.connect(one, dispatch_uid="same")
    signal.connect(two, dispatch_uid="same")
    assert [answer for _, answer in signal.send(None)] == [1, 1]
    assert signal.disconnect(dispatch_uid="same")
    assert signal.disconnect(one)
    assert not signal.disconnect(one)
    assert not signal.receivers


def test_receivers_are_held_weakly_unless_told_otherwise() -> None:
    signal = Signal()

    class Watcher:
        def seen(self, **_: Any) -> str:
            return "method"

    watcher = Watcher()
    signal.connect(watcher.seen)
    signal.connect(lambda **_: "gone")
    signal.connect(lambda **_: "kept", weak=False)
    gc.collect()
    assert [answer for _, answer in signal.send(None)] == ["method", "kept"]
    del watcher
    gc.collect()
    assert [answer for _, answer in signal.send(None)] == ["kept"]


def test_two_instances_of_one_class_are_two_receivers() -> None:
    signal = Signal()

    class Watcher:
        def seen(self, **_: Any) -> Watcher:
            return self

    one, two = Watcher(), Watcher()
    signal.connect(one.seen)
    signal.connect(two.seen)
    assert [answer for _, answer in signal.send(None)] == [one, two]


def test_a_receiver_must_take_keyword_arguments() -> None:
    with pytest.raises(ValueError, match="keyword"):
        Signal().connect(lambda sender: None, weak=False)
    with pytest.raises(TypeError, match="callable"):
        Signal().connect(receiver=3)  # type: ignore[call-overload]


def test_a_retrying_receiver_is_connected_strongly_and_disconnected_by_itself() -> None:
    signal = Signal()

    def receiver(**_: Any) -> int:
        return 5

    signal.connect(receiver, retry=True)
    assert [answer for _, answer in signal.send(None)] == [5]
    assert signal.disconnect(receiver)
