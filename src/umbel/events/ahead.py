"""What a task's message says of the tasks that follow it: the steps of its chain, and the body of its chord.

They travel inside the message and are sent one after the other, so only whoever received it can tell of them. Celery's
workers do not; what listens must do without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

#: The most steps that are told: each task of a long chain tells of those behind it.
MOST: Final = 20
_LONGEST: Final = 255


def steps_ahead(chain: Sequence[Any] | None, chord: Any) -> list[dict[str, str]]:
    """Return what follows a task, the next one first, as events tell it: ``id``, ``name``, and the ``group`` it is in.

    A group that is still to be sent is one step, with its own id. What is no signature is left out.

    :param chain: as a message holds it, the next step last.
    """
    return list(islice(_walk(chain, chord), MOST))


def _walk(chain: Any, chord: Any) -> Iterator[dict[str, str]]:
    for signature in reversed(chain) if isinstance(chain, list | tuple) else ():
        yield from _steps(signature)
    # Each level of a message that was decoded is a level of its JSON, so this ends.
    if isinstance(chord, Mapping):
        yield from _steps(chord)


def _steps(signature: Any) -> Iterator[dict[str, str]]:
    if not isinstance(signature, Mapping):
        return
    options, kwargs = _mapping(signature.get("options")), _mapping(signature.get("kwargs"))
    kind = signature.get("subtask_type")
    if kind == "chord":
        header = kwargs.get("header")
        yield from _steps(header if isinstance(header, Mapping) else {"subtask_type": "group", "options": options})
        yield from _steps(kwargs.get("body"))
    elif kind == "chain":
        tasks = kwargs.get("tasks")
        for each in tasks if isinstance(tasks, list | tuple) else ():
            yield from _steps(each)
    elif kind == "group":
        tasks = kwargs.get("tasks")
        yield from _step(options, f"group of {len(tasks)}" if isinstance(tasks, list | tuple) else "group")
    else:
        yield from _step(options, signature.get("task"))
    yield from _walk(options.get("chain"), options.get("chord"))


def _step(options: Mapping[str, Any], name: Any) -> Iterator[dict[str, str]]:
    id, group = options.get("task_id"), options.get("group_id")
    if isinstance(id, str) and 0 < len(id) <= _LONGEST:
        step = {"id": id, "name": str(name or "")[:_LONGEST]}
        yield {**step, "group": group} if isinstance(group, str) and 0 < len(group) <= _LONGEST else step


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
