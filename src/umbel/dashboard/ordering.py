"""Telling workers what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from umbel.dashboard.asking import PATIENCE
from umbel.dashboard.page import Ask


def told(ask: Ask, order: Callable[..., Any], *arguments: Any, node: str = "") -> tuple[str, int]:
    """Give an order to one worker, or to all; return what they reply as a sentence, and how many obeyed."""
    destination = [node] if node else None
    replies = order(*arguments, destination=destination, reply=True, timeout=PATIENCE) or []
    ask.site.asking.forget()
    heard: dict[str, Any] = {name: value for reply in replies for name, value in reply.items()}
    if not heard:
        ask.refuse(504, "Nobody replied. The order was sent all the same, and may be obeyed later.")
    refused = {name: value["error"] for name, value in heard.items() if isinstance(value, Mapping) and "error" in value}
    if refused and len(refused) == len(heard):
        name, why = next(iter(refused.items()))
        ask.refuse(409, f"{name}: {why}")
    texts = {str(value.get("ok", value)) for value in heard.values() if isinstance(value, Mapping)} - {"None"}
    who = next(iter(heard)) if len(heard) == 1 else f"{len(heard)} workers"
    said = "; ".join(sorted(texts)[:3]) or "told"
    left = f"; {len(refused)} refused" if refused else ""
    return f"{who}: {said}{left}.", len(heard) - len(refused)
