"""Tasks: what was recorded, searched; one task with all that is known of it; sending once more and revoking."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from starlette.responses import RedirectResponse

from umbel.cli.tasks import result_of, stored_meta
from umbel.dashboard.call_form import words
from umbel.dashboard.editing import Subject, edit_form, edit_preview, edit_send
from umbel.dashboard.page import Ask, Page, Reply
from umbel.dashboard.reading import Shown, shown
from umbel.exceptions import CeleryError
from umbel.history import BadQuery, History, TaskRow
from umbel.history.editing import Editor
from umbel.history.query import not_replayed
from umbel.history.replay import Refused
from umbel.interfaces import Sighting
from umbel.message import decode_envelope
from umbel.utils.rates import per_second
from umbel.why import Answer, why

page = Page("tasks", "Tasks", key="t")

#: The most that one action changes.
MOST: Final = 10_000
_LONGEST: Final = 1000
_PATIENCE: Final = 0.15
_REPRS: Final = ("argsrepr", "kwargsrepr")
_STATES: Final = ("RECEIVED", "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED")


@page.get("/tasks")
def tasks(ask: Ask) -> Reply:
    """List recorded tasks, those that fit the query."""
    query, limit = ask.text("q", most=_LONGEST), ask.number("limit", 50, least=1, most=500)
    after = ask.text("after", most=20)
    history = ask.site.recording.history
    rows: Sequence[TaskRow] = ()
    following, wrong = 0, ""
    if history is not None:
        try:
            found = history.tasks(query, after=int(after) if after.isdecimal() else 0, limit=limit)
            rows, following = found.tasks, found.next
        except BadQuery as error:
            wrong = str(error)
    return ask.render(
        "tasks.html",
        query=query,
        rows=rows,
        following=following,
        wrong=wrong,
        limit=limit,
        states=_STATES,
        counts=history.counts(names=False) if history is not None else None,
        most=MOST,
        recording=ask.site.recording,
        status=400 if wrong else 200,
    )


@page.get("/task")
def task(ask: Ask) -> Reply:
    """Show one task."""
    id = ask.text("id", most=300)
    history: History | None = ask.site.recording.history
    row = history.task(id) if history is not None else None
    meta = _meta(ask, id)
    ended = (row is not None and row.ready) or (meta is not None and meta["status"] in ("SUCCESS", "REVOKED"))
    asked = bool(ask.text("why"))
    answer = None if ended and not asked else _why(ask, id, history, 2.0 if asked else _PATIENCE)
    if row is None and meta is None and (answer is None or answer.verdict == "unknown"):
        ask.refuse(404, "Nobody knows this id: there is no message, no result and no history of it.")
    known = row is not None and history is not None
    message = None if ended else _message(ask, id, answer)
    call = message["call"] if message is not None else None
    stored = result_of(ask.app, meta, [row, call]) if meta is not None else None
    return ask.render(
        "task.html",
        id=id,
        row=row,
        stored=stored,
        progress=progress_of(stored),
        answer=answer,
        timeline=history.timeline(id) if known and history is not None else (),
        attempts=history.attempts(id) if known and history is not None else (),
        children=history.relatives(id) if known and history is not None else (),
        message=message,
    )


@page.post("/tasks/retry", "tasks.retry")
def retry(ask: Ask) -> Reply:
    """Send tasks once more: the chosen ones, or all that fit."""
    ids = _meant(ask, not_replayed)
    try:
        rate = per_second(ask.optional("rate", most=20) or "10/s")
    except ValueError as error:
        ask.refuse(400, str(error))
    query = ask.optional("q", most=_LONGEST)
    if not ids:
        return ask.done("No task fits.", to="/tasks", q=query, count=0)
    if not ask.site.recording.send_again(ids, rate):
        ask.refuse(409, "Other tasks are being sent once more; wait until that has ended, or stop it.")
    text = f"Sending {len(ids):,} {'task' if len(ids) == 1 else 'tasks'} once more."
    return ask.done(text, to="/tasks", target=_target(ids), count=len(ids), q=query)


@page.get("/task/edit")
def form(ask: Ask) -> Reply:
    """Show the form in which a task is changed, to be sent once more."""
    id = ask.text("id", most=300)
    letter = ask.app.dead.get(id)
    if letter is not None:
        return RedirectResponse(ask.url("/dead/letter/edit", id=letter.id), 303)
    return edit_form(ask, _subject(ask, id))


@page.post("/tasks/preview", "")
def preview(ask: Ask) -> Reply:
    """Show what a form changes, and the button that sends it."""
    return edit_preview(ask, _subject(ask, ask.field("id", most=300)))


@page.post("/tasks/edit", "tasks.edit")
def edit(ask: Ask) -> Reply:
    """Send a task once more, changed."""
    subject = _subject(ask, ask.field("id", most=300))
    done = edit_send(ask, subject)
    if done.refusal:
        ask.refuse(409, done.refusal)
    text = f"Put back as {done.new_id}." if done.new_id == subject.id else f"Sent as {done.new_id}."
    return ask.done(text, to="/task", id=subject.id, target=shlex.join([subject.id, done.new_id]), count=1)


@page.post("/tasks/retry/stop", "tasks.retry_stop")
def stop(ask: Ask) -> Reply:
    """Send no more of them."""
    ask.site.recording.stop_sending()
    return ask.done("Stopped.", to="/tasks")


@page.post("/tasks/revoke", "tasks.revoke")
def revoke(ask: Ask) -> Reply:
    """Revoke tasks, and with ``terminate`` end those that run."""
    ids = _meant(ask)
    terminate = bool(ask.optional("terminate"))
    if ids:
        ask.app.control.revoke(ids, terminate=terminate)
    text = f"{len(ids):,} {'task' if len(ids) == 1 else 'tasks'} revoked{' and terminated' if terminate else ''}."
    return ask.done(text, to="/tasks", target=_target(ids), count=len(ids), q=ask.optional("q", most=_LONGEST))


def command(ask: Ask, verb: str, query: str, *more: str) -> str:
    """Return the command line that does something to all that fit."""
    return ask.site.command("tasks", verb, "--where", query, "--yes", *more)


def progress_of(stored: Mapping[str, Any] | None) -> tuple[float, float, str] | None:
    """Return how far a task says that it is: so many of so many, and a word about it."""
    result = stored.get("result") if stored is not None and stored["state"] == "PROGRESS" else None
    if not isinstance(result, dict):
        return None
    done = next((result[name] for name in ("done", "current", "n") if isinstance(result.get(name), int | float)), None)
    total = result.get("total")
    if done is None or not isinstance(total, int | float) or total <= 0:
        return None
    return float(min(done, total)), float(total), str(result.get("text") or result.get("description") or "")


# -- what belongs to one task ------------------------------------------------------------------------------------


def _meta(ask: Ask, id: str) -> dict[str, Any] | None:
    try:
        return stored_meta(ask.app, id)
    except CeleryError:
        # The page says what else is known.
        return None


def _why(ask: Ask, id: str, history: History | None, patience: float) -> Answer:
    return why(ask.app, id, history=history, timeout=patience)


def _message(ask: Ask, id: str, answer: Answer | None) -> dict[str, Any] | None:
    """Return the message that is in the broker, without what is sensitive; its body only where nothing can be."""
    place = answer.facts.get("place") if answer is not None else None
    if place is None or not ask.app.broker.features.finds:
        return None
    try:
        seen: Sighting | None = ask.app.broker.find(
            id, [answer.facts["queue"]] if answer is not None else [], timeout=0.5
        )
        message = (seen.seen.message or decode_envelope(seen.seen.raw)) if seen is not None else None
    except (CeleryError, TimeoutError):
        return None
    if seen is None or message is None:
        return None
    call: Shown = shown(ask.app, seen.seen)
    veiled = call.hidden or bool(call.trouble)
    return {
        "headers": {key: value for key, value in message.headers.items() if not veiled or key not in _REPRS},
        "properties": message.properties,
        "type": message.content_type,
        "call": call,
        "body": message.body[:20_000].decode("utf-8", "replace") if call.plain else None,
    }


def _subject(ask: Ask, id: str) -> Subject:
    """Return the task that is to be changed. 404 where nobody knows what it called."""
    editor = Editor(ask.app, ask.site.recording.history)
    try:
        original = editor.original(id, [each.name for each in ask.site.live.queues])
    except Refused as refused:
        ask.refuse(404, f"It cannot be edited: {refused}.")
    dead = original.letter is not None
    return Subject(
        editor=editor,
        original=original,
        id=id,
        act="/tasks/edit",
        preview="/tasks/preview",
        back=("/tasks", "Tasks", "/task"),
        verb="Edit and retry",
        outcome=(
            "It is a dead letter, and is put back under its own id."
            if dead
            else "It is sent as a new task with an id of its own, whose headers name the one that it repeats."
        ),
        line=lambda said: ask.site.command("tasks", "retry", id, *words(said)),
    )


# -- what an action means ----------------------------------------------------------------------------------------


def _meant(ask: Ask, narrowed: Callable[[str], str] = str) -> list[str]:
    """Return the ids that a form means: those that were chosen, or with ``all`` those that fit its query, narrowed."""
    if not ask.optional("all"):
        ids = [id for id in dict.fromkeys(ask.fields("id")) if 0 < len(id) <= 300]
        if not ids:
            ask.refuse(400, "No task was chosen.")
        return ids
    history = ask.site.recording.history
    if history is None:
        ask.refuse(409, "There is no history to find them in.")
    try:
        return [row.id for row in history.find(narrowed(ask.optional("q", most=_LONGEST)), limit=MOST)[0]]
    except BadQuery as error:
        ask.refuse(400, str(error))


def _target(ids: Sequence[str]) -> str:
    return shlex.join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
