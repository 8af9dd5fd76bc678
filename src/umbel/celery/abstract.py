"""``celery.utils.abstract``: what is like a task, and what is like a signature."""

from __future__ import annotations

from abc import ABC, ABCMeta
from typing import Any

from umbel.signatures import Signature
from umbel.task import Task


class _Like(ABCMeta):
    def __instancecheck__(cls, instance: Any) -> bool:
        # A proxy of a task counts as one.
        return cls.__subclasscheck__(instance.__class__)


class CallableTask(ABC, metaclass=_Like):
    """Has ``delay``, ``apply_async`` and ``apply``, and can be called."""

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        return all(hasattr(other, name) for name in ("delay", "apply_async", "apply", "__call__"))


CallableTask.register(Task)


class CallableSignature(CallableTask):
    """Has what a signature has."""

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        return all(hasattr(other, name) for name in ("clone", "freeze", "set", "link", "link_error", "__or__"))


CallableSignature.register(Signature)
