"""``celery.app.annotations``: what ``task_annotations`` may hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from umbel.bound import annotations_for
from umbel.celery.imports import instantiate


class MapAnnotation(dict[str, Any]):
    """Changes of tasks by name; those under ``*`` are for all."""

    def annotate_any(self) -> Any:
        """Return the changes for all tasks, or None."""
        return dict(self["*"]) if "*" in self else None

    def annotate(self, task: Any) -> Any:
        """Return the changes for one task, or None."""
        return dict(self[task.name]) if task.name in self else None


def prepare(annotations: Any) -> tuple[Any, ...]:
    """Return the annotations as objects: mappings wrapped, names found."""

    def one(annotation: Any) -> Any:
        if isinstance(annotation, Mapping):
            return MapAnnotation(annotation)
        return instantiate(annotation) if isinstance(annotation, str) else annotation

    if annotations is None:
        return ()
    return tuple(map(one, annotations if isinstance(annotations, list | tuple) else (annotations,)))


def resolve_all(anno: Any, task: Any) -> Iterator[Any]:
    """Yield what the annotations say about one task."""
    return annotations_for(anno, task)
