"""What follows when a chord's last part is in: its body with the values of all members, or its failure.

The last member's message is still held then. The settlement made here publishes the body, closes the chord and ends
the message; a crash before it brings the message again, whose part owns the chord still. A body that fails is a
failed task like any other: what comes after it in a chain fails too, and if it is itself a member of a chord it adds
a failed part there, which may be the last one of that chord.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from umbel import states
from umbel.canvas_base import as_signature
from umbel.collecting import Collected
from umbel.context import Context
from umbel.exceptions import ChordError, DecodeError, OperationalError, SecurityError
from umbel.interfaces import Outgoing, Settlement
from umbel.message import Call
from umbel.meta import accepted, decode_group, decode_meta, decode_part
from umbel.signatures import as_list
from umbel.tracing import format_traceback
from umbel.worker.followups import Errbacks, running
from umbel.worker.records import Contribution, Records, leaves

# Celery's name for what goes wrong with chords.
logger = logging.getLogger("celery.backends.base")


class Chords:
    """Completes the chords of one app. Its methods may be called from any thread."""

    def __init__(self, app: Any, records: Records, *, hostname: str) -> None:
        self._app = app
        self._records = records
        self._hostname = hostname

    def complete(self, settlement: Settlement) -> Settlement:
        """Return the settlement that follows the one whose part was the last of its chord.

        It has a part of its own where the body fails as a member of another chord. Raises :exc:`OperationalError` if
        the parts cannot be read; asking again is safe.
        """
        part = settlement.chord
        if not isinstance(part, Contribution):
            raise TypeError("the settlement that completed a chord has no part of a chord")
        rest = msgspec.structs.replace(settlement, result=None, results=(), chord=None, parts=())
        try:
            try:
                body = self._body(part)
            except OperationalError:
                raise
            except ChordError as error:
                return self._failed(rest, part, error)
            # The wall around user code that encodes, and around options that name queues: there is no caller to tell.
            except Exception as error:
                return self._failed(rest, part, _caused(f"Callback error: {error!r}", error))
        except OperationalError:
            raise
        # Whatever it is, the member's message must end, and no later try would fare better.
        except Exception:
            logger.exception(
                "Chord %r cannot be completed, and its body cannot even be marked as failed", part.group_id
            )
            return rest
        return msgspec.structs.replace(rest, publish=[*rest.publish, *body])

    def _body(self, part: Contribution) -> list[Outgoing]:
        """Return the messages that call the body."""
        call, app = part.call, self._app
        values = self._values(part.group_id)
        outbox = Collected(app)
        with running(app.registry.get(call.task), Context.from_call(call, hostname=self._hostname)):
            as_signature(part.body, app)._deliver(outbox, (values,), {}, {"add_to_parent": False})
        return outbox.outgoings

    # -- the values ----------------------------------------------------------------------------------------------

    def _values(self, group_id: str) -> list[Any]:
        """Return the values of the members in their order. Raises :exc:`ChordError` if one of them failed."""
        backend, conf = self._app.backend, self._app.conf
        how = {"serializer": conf.result_serializer, "accept": accepted(conf)}
        found: list[tuple[str, Any]] = []
        try:
            for payload in backend.chord(group_id).parts():
                task_id, state, value = decode_part(payload, **how)
                found.append((task_id, _value(task_id, state, value)))
            nested = backend.fetch_group(group_id)
            if nested is None:
                return [value for _, value in found]
            return self._nested(decode_group(nested, **how), dict(found))
        except (DecodeError, SecurityError) as error:
            raise _caused(f"Join error: {error!r}", error) from error

    def _nested(self, group: Any, values: dict[str, Any]) -> list[Any]:
        """Return the values as the members are nested; what is no part, such as of an ignored result, is looked up."""
        missing = [task_id for task_id in _ids(group) if task_id not in values]
        if missing:
            conf = self._app.conf
            for task_id, payload in self._app.backend.fetch(missing).items():
                meta = decode_meta(payload, serializer=conf.result_serializer, accept=accepted(conf))
                values[task_id] = _value(task_id, meta["status"], meta["result"])
        return [_filled(node, values) for node in group[1]]

    # -- failing -------------------------------------------------------------------------------------------------

    def _failed(self, rest: Settlement, part: Contribution, error: ChordError) -> Settlement:
        """Return how the chord fails: its body is marked, its errbacks are told, and so is what comes after."""
        logger.error("Chord %r raised: %r", part.group_id, error)
        body, call = part.body, part.call
        # Those who wait for the tasks of a group see what happened, and not that there was a chord.
        reason = error.__cause__ or error if body.get("subtask_type") == "group" else error
        traceback = format_traceback(reason, reason.__traceback__)
        fields = self._records.doom(call, iter((body,)), reason, traceback)
        publish = list(rest.publish)
        for failed in self._tell(body, call):
            errbacks = Errbacks(self._app, failed)
            errbacks.run(Context.from_call(failed, hostname=self._hostname), reason, None)
            publish += errbacks.sent
        return msgspec.structs.replace(rest, publish=publish, **fields)

    def _tell(self, body: Mapping[str, Any], call: Call) -> list[Call]:
        """Return the calls that did not come to be, each with the errbacks that are told of that."""
        found: list[Call] = []
        errbacks, own = _errbacks(body)
        ends = [body] if own.get("subtask_type") != "group" else list((own.get("kwargs") or {}).get("tasks") or ())
        for end in ends:
            if own.get("subtask_type") == "group":
                links, end = _errbacks(end)
                links += [each for each in errbacks if each not in links]
            else:
                links, end = errbacks, own
            task_id = (end.get("options") or {}).get("task_id") or _last_id(end)
            if links and task_id:
                found.append(_call_of(end, task_id, links, call))
        return found


def _value(task_id: str, state: str, value: Any) -> Any:
    if state in states.PROPAGATE_STATES:
        raise _caused(f"Dependency {task_id} raised {value!r}", value)
    return value


def _caused(text: str, cause: Any) -> ChordError:
    error = ChordError(text)
    error.__cause__ = cause if isinstance(cause, BaseException) else None
    return error


def _ids(node: Any) -> list[str]:
    own, members = node
    if members is None:
        return [own[0] if isinstance(own, list | tuple) else own]
    return [task_id for member in members for task_id in _ids(member)]


def _filled(node: Any, values: dict[str, Any]) -> Any:
    own, members = node
    if members is None:
        return values.get(own[0] if isinstance(own, list | tuple) else own)
    return [_filled(member, values) for member in members]


def _errbacks(sig: Mapping[str, Any]) -> tuple[list[Any], Mapping[str, Any]]:
    """Return the errbacks for the end of a signature, and that end: of a chord it is the body."""
    found: list[Any] = []
    while True:
        found += [each for each in as_list((sig.get("options") or {}).get("link_error")) or () if each not in found]
        body = (sig.get("kwargs") or {}).get("body") if sig.get("subtask_type") == "chord" else None
        if body is None:
            return found, sig
        sig = body


def _last_id(sig: Mapping[str, Any]) -> str | None:
    ids = [(task.get("options") or {}).get("task_id") for task, in_header in leaves(sig) if not in_header]
    return ids[-1] if ids else None


def _call_of(sig: Mapping[str, Any], task_id: str, errbacks: list[Any], member: Call) -> Call:
    options = sig.get("options") or {}
    headers = {"root_id": options.get("root_id") or task_id, "parent_id": member.id, "group": options.get("group_id")}
    return Call(
        task=str(sig.get("task")),
        id=task_id,
        args=list(sig.get("args") or ()),
        kwargs=dict(sig.get("kwargs") or {}),
        headers=headers,
        errbacks=errbacks,
    )
