"""Changing a call and making it once more: the form, its preview, and the sending, for tasks and for dead letters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from umbel.dashboard.call_form import FIELDS, LONGEST, changed, differences, written
from umbel.dashboard.entry_form import Wrong
from umbel.dashboard.page import Ask, Reply
from umbel.exceptions import CeleryError, OperationalError
from umbel.history.editing import Changes, Editor, Original
from umbel.history.replay import Replayed
from umbel.sensitive import HIDDEN


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be changed, and how its pages call what they do."""

    editor: Editor
    original: Original
    id: str
    act: str  # the paths of sending, and of looking at it first
    preview: str
    back: tuple[str, str, str]  # the list, its name, and the page of the one
    verb: str
    outcome: str
    line: Callable[[Changes], str]


def edit_form(ask: Ask, subject: Subject) -> Reply:
    """Show the form. Operators only."""
    _allow(ask)
    before = _before(subject)
    return _page(ask, subject, {**dict.fromkeys(FIELDS, ""), **before}, before)


def edit_preview(ask: Ask, subject: Subject) -> Reply:
    """Show what a form changes; where it cannot be sent so, why not. Operators only."""
    _allow(ask)
    before, given = _before(subject), _given(ask)
    try:
        changes = _changes(subject, given, before)
    except Wrong as error:
        return _page(ask, subject, given, before, wrong=str(error))
    shown: dict[str, Any] = {"changes": differences(changes, before), "given": given, "cli": subject.line(changes)}
    return _page(ask, subject, given, before, **shown)


def edit_send(ask: Ask, subject: Subject) -> Replayed:
    """Send what a form says. 400 where it cannot be sent so."""
    try:
        changes = _changes(subject, _given(ask), _before(subject))
    except Wrong as error:
        ask.refuse(400, str(error))
    return subject.editor.send(subject.original, changes)


# -- inside ------------------------------------------------------------------------------------------------------


def _allow(ask: Ask) -> None:
    if not ask.may_act:
        ask.refuse(403, "Nothing may be changed here by you.")


def _given(ask: Ask) -> dict[str, str]:
    return {name: ask.optional(name, most=LONGEST).strip() for name in FIELDS}


def _before(subject: Subject) -> dict[str, str]:
    return written(subject.editor.shown(subject.original), subject.original.queue)


def _changes(subject: Subject, given: Mapping[str, str], before: Mapping[str, str]) -> Changes:
    """Return what a form changes, once it is sure that it can be sent. Raises :exc:`Wrong`."""
    changes = changed(given, before)
    try:
        subject.editor.check(subject.original, changes)
    except OperationalError:
        raise
    except TypeError as error:
        raise Wrong(
            f"{subject.original.task} does not take these arguments: {' '.join(str(error).split())}."
        ) from error
    except (ValueError, CeleryError) as error:
        raise Wrong(f"{' '.join(str(error).split())}.") from error
    return changes


def _note(subject: Subject, before: Mapping[str, str]) -> str:
    """Return what there is to say about the arguments in the form."""
    original = subject.original
    if original.secret:
        return (
            "Something in its arguments is sensitive, and this process does not know the task, so none is shown. "
            "Empty leaves them as they are."
        )
    if original.arguments is None:
        return f"Its arguments are not known: {original.refusal}. All of them have to be given."
    if "args" not in before:
        return "Its arguments are more than JSON can say, or too long for a form. Empty leaves them as they are."
    if any(HIDDEN in text for text in (before["args"], before["kwargs"])):
        return f"{HIDDEN} is something sensitive: left in its place, it stays as it is."
    return ""


def _page(
    ask: Ask, subject: Subject, fields: Mapping[str, str], before: Mapping[str, str], *, wrong: str = "", **preview: Any
) -> Reply:
    original = subject.original
    told = {"changes": None, "given": {}, "cli": "", **preview}
    follows = " Its callbacks, and what it is a part of, are not sent once more." if original.follows else ""
    return ask.render(
        "call_form.html",
        status=400 if wrong else 200,
        id=subject.id,
        name=original.task,
        fields=fields,
        shown=before,
        wrong=wrong,
        note=_note(subject, before),
        waits=original.waits,
        checked=ask.app.plan(original.task).check is not None,
        act=subject.act,
        preview=subject.preview,
        back=subject.back,
        verb=subject.verb,
        button="Put it back" if original.letter is not None else "Send it",
        outcome=subject.outcome + follows,
        **told,
    )
