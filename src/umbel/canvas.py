"""Everything that signatures are put together with, under the names that Celery's ``celery.canvas`` has."""

from __future__ import annotations

from typing import Any

from umbel.canvas_base import unrolled as maybe_unroll_group
from umbel.canvas_chain import chain
from umbel.canvas_chord import chord
from umbel.canvas_group import group
from umbel.canvas_map import _Map as _basemap
from umbel.canvas_map import chunks, xmap, xstarmap
from umbel.signatures import Signature, maybe_signature, reprcall, signature, subtask
from umbel.stamping import StampingVisitor

__all__ = [
    "Signature",
    "StampingVisitor",
    "_basemap",
    "_chain",
    "_chord",
    "chain",
    "chord",
    "chunks",
    "group",
    "maybe_signature",
    "maybe_subtask",
    "maybe_unroll_group",
    "reprcall",
    "signature",
    "subtask",
    "task_name_from",
    "xmap",
    "xstarmap",
]

maybe_subtask = maybe_signature
# Celery has these apart, so that a folded chain is no instance of what made it.
_chain = chain
_chord = chord


def task_name_from(task: Any) -> Any:
    """Return the name of a task, and of a name itself."""
    return getattr(task, "name", task)
