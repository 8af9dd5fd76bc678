"""The screen of ``umbel top``: a header, workers, queues, tasks, and all about the chosen task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import signal
import time
from collections.abc import Callable
from typing import ClassVar, Final

from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import DataTable, Footer, Input, Static

from umbel import states
from umbel.cli.output import clean
from umbel.top.parts import Help, Listing, Question, written
from umbel.top.source import About, Done, Frame, Item, Source
from umbel.top.telling import (
    QUEUES,
    TASKS,
    WORKERS,
    Line,
    done_line,
    heading,
    queue_cells,
    task_cells,
    telling,
    worker_cells,
)

_QUERY: Final = "state:failed name:proj.* queue: worker: error: after:2h runtime:>5s, and words"
#: Seconds that the cursor rests before a task is looked for, and after which it is looked for again until it ends.
_RESTS: Final = 0.2
_AGAIN: Final = 3.0
_NOBODY: Final = ("", "")
_NOTHING: Final[list[Line]] = [[("Choose a task with the arrows, to see where it is, and why.", "dim")]]
_HINT: Final[Line] = [("Each action shows here the command line that does the same.", "dim")]


class Top(App[None]):
    """See the module. The source must have been started."""

    TITLE = "umbel top"
    CSS_PATH = "screen.tcss"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("r", "retry", "Retry"),
        Binding("x", "revoke", "Revoke"),
        Binding("e", "events", "Events on"),
        Binding("p", "pause", "Pause"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("escape", "all", show=False),
        Binding("j", "move(1)", show=False),
        Binding("k", "move(-1)", show=False),
    ]

    def __init__(self, source: Source, *, name: str = "", every: float = 1.0) -> None:
        super().__init__()
        self._source = source
        self._label = name
        self._every = every
        self._query = ""
        self._paused = self._looking = False
        self._frame: Frame | None = None
        self._items: dict[str, Item] = {}
        self._about: About | None = None
        #: What the pane of the chosen task shows, or is about to: its id and state, and when it was asked for.
        self._asked = _NOBODY
        self._asked_at = 0.0
        # Kept, because a query finds only what is on the uppermost screen: a question, say.
        self._head, self._told, self._done = Static(id="head"), Static(id="told"), Static(id="done")
        self._workers_list, self._queues_list = Listing(WORKERS, id="workers"), Listing(QUEUES, id="queues")
        self._tasks_list, self._about_pane = Listing(TASKS, id="tasks"), VerticalScroll(id="about")
        self._upper = Horizontal(id="upper")
        self._field = Input(placeholder=_QUERY, id="filter")

    def compose(self) -> ComposeResult:
        """Make the panes."""
        yield self._head
        with self._upper:
            yield self._workers_list
            yield self._queues_list
        yield self._field
        with Horizontal(id="lower"):
            yield self._tasks_list
            with self._about_pane:
                yield self._told
        yield self._done
        yield Footer()

    def on_mount(self) -> None:
        """Begin to show."""
        self._workers_list.border_title = "Workers"
        self._queues_list.border_title = "Queues"
        self._about_pane.border_title = "Task"
        self._told.update(written(_NOTHING))
        self._say(_HINT)
        self._title()
        self._tasks_list.focus()
        self.set_interval(self._every, self._tick)
        self._look()
        # Where signals come to other threads, as on Windows, the terminal closes the program another way.
        with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self._end, 128 + number)

    def _end(self, status: int) -> None:
        self.exit(return_code=status)

    # -- what is seen --------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if not self._paused:
            self._look()

    @work(group="frame")
    async def _look(self) -> None:
        if self._looking:
            # The history is slow; the next tick will do, if there is nothing else to be asked by then.
            return
        self._looking = True
        try:
            query = None
            while query != self._query:
                query = self._query
                frame = await asyncio.to_thread(self._source.frame, query, self._tasks_list.chosen)
        finally:
            self._looking = False
        self._show(frame)

    def _show(self, frame: Frame) -> None:
        self._frame = frame
        self._items = {each.id: each for each in frame.tasks}
        self._draw_head()
        self._workers_list.show([(each.seen.name, worker_cells(each)) for each in frame.workers])
        self._queues_list.show([(each.depth.name, queue_cells(each)) for each in frame.queues])
        # As high as what is in them, and at most a quarter of the screen.
        rows = max(len(frame.workers), len(frame.queues))
        self._upper.styles.height = max(5, min(rows + 3, self.size.height // 4))
        self._tasks_list.show([(each.id, task_cells(each)) for each in frame.tasks])
        self._title(frame.wrong)
        self._follow()

    def _draw_head(self) -> None:
        if self._frame is not None:
            lines = heading(self._frame, app=self._label, paused=self._paused)
            self._head.update(written(lines))

    def _title(self, wrong: str = "") -> None:
        tasks = self._tasks_list
        tasks.border_title = f"Tasks: {_bare(self._query)}" if self._query else "Tasks"
        tasks.border_subtitle = _bare(wrong[:160])

    # -- the chosen task -----------------------------------------------------------------------------------------

    @on(Listing.Moved)
    def _moved(self) -> None:
        self._follow()

    def _follow(self) -> None:
        """Look for the chosen task where it is another one, has another state, or goes on."""
        item = self._items.get(self._tasks_list.chosen)
        if item is None:
            self._forget()
            return
        asked = (item.id, item.state)
        known = self._about is not None and self._about.id == item.id
        goes_on = self._about is not None and known and not self._about.ended
        if asked != self._asked or (goes_on and time.monotonic() - self._asked_at > _AGAIN):
            self._asked, self._asked_at = asked, time.monotonic()
            self._read(item.id, 0.0 if known else _RESTS)

    def _forget(self) -> None:
        if self._asked != _NOBODY:
            self._asked, self._about = _NOBODY, None
            self._tell("Task", _NOTHING)

    @work(exclusive=True, group="about")
    async def _read(self, id: str, rests: float) -> None:
        await asyncio.sleep(rests)
        about = await asyncio.to_thread(self._source.about, id)
        if self._asked[0] != id:
            return
        other = self._about is None or self._about.id != id
        self._about, self._asked_at = about, time.monotonic()
        self._tell(f"Task {id}", list(telling(about)))
        if other:
            self._about_pane.scroll_home(animate=False)

    def _tell(self, title: str, lines: list[Line]) -> None:
        self._about_pane.border_title = _bare(title)
        self._about_pane.set_class(lines is not _NOTHING, "told")
        self._told.update(written(lines))

    # -- keys ----------------------------------------------------------------------------------------------------

    def action_move(self, lines: int) -> None:
        """Move the cursor of the table that has the keys, or else the text."""
        focused = self.focused
        if isinstance(focused, Listing):
            focused.choose(lines)
        elif isinstance(focused, VerticalScroll):
            focused.scroll_relative(y=lines, animate=False)

    def action_pause(self) -> None:
        """Stop what moves, or have it go on."""
        self._paused = not self._paused
        if self._paused:
            self._source.crew.resting.set()
        else:
            self._source.crew.resting.clear()
        self._draw_head()
        self._tick()

    def action_filter(self) -> None:
        """Ask for a filter."""
        field = self._field
        field.value = self._query
        field.add_class("open")
        field.focus()

    def action_all(self) -> None:
        """Show all tasks again, and choose none."""
        self._filter("")

    @on(Input.Submitted, "#filter")
    def _asked_for(self, event: Input.Submitted) -> None:
        self._filter(event.value.strip())

    @on(DataTable.RowSelected, "#workers")
    def _of_worker(self) -> None:
        self._filter(shlex.quote(f"worker:{self._workers_list.chosen}"))

    @on(DataTable.RowSelected, "#queues")
    def _of_queue(self) -> None:
        self._filter(shlex.quote(f"queue:{self._queues_list.chosen}"))

    def _filter(self, query: str) -> None:
        self._query = query
        self._field.remove_class("open")
        self._title()
        self._tasks_list.release()
        self._tasks_list.focus()
        self._look()

    def action_help(self) -> None:
        """Show the keys, and the command lines that do the same."""
        line = self._source.line
        keys = (
            ("tab", "next pane; arrows, j and k move in it", ""),
            ("enter", "on a worker or a queue: its tasks", line("tasks", "list", "queue:NAME")),
            ("/", "filter the tasks; escape shows all", line("tasks", "list", "state:failed", "after:2h")),
            ("r", "send the chosen task once more", self._source.retry_line("ID")),
            ("x", "revoke the chosen task, after a question", self._source.revoke_line("ID")),
            ("e", "have the workers tell of their tasks", self._source.enable_events_line()),
            ("p", "pause what moves", ""),
            ("q", "quit", ""),
        )
        lines: list[Line] = [[("Keys", "strong")], []]
        for key, text, same in keys:
            lines.append([(f" {key:<6}", "busy strong"), (text, "")])
            if same:
                lines.append([(f"        $ {same}", "dim")])
        lines += [[], [("Any key closes this.", "dim")]]
        self.push_screen(Help(lines))

    # -- doing ---------------------------------------------------------------------------------------------------

    def action_retry(self) -> None:
        """Send the chosen task once more; ask first where it has not ended."""
        item = self._chosen()
        if item is None:
            return
        if item.state in states.READY_STATES:
            self._do(lambda: self._source.retry(item.id))
        else:
            text = f"{_task(item)} has not ended: sent once more, it runs twice."
            answers = {"y": ("send it once more", self._source.retry_line(item.id))}
            self._ask(text, answers, lambda _: self._source.retry(item.id))

    def action_revoke(self) -> None:
        """Revoke the chosen task, if that is meant."""
        item = self._chosen()
        if item is None:
            return
        if item.state in states.READY_STATES:
            self._say([(f"{_task(item)} has ended: there is nothing to revoke.", "odd")])
            return
        answers = {"y": ("revoke it: no worker starts it", self._source.revoke_line(item.id))}
        if item.since is not None:
            ends = self._source.revoke_line(item.id, terminate=True)
            answers["t"] = ("revoke it, and end it where it runs", ends)
        self._ask(f"Revoke {_task(item)}?", answers, lambda key: self._source.revoke(item.id, terminate=key == "t"))

    def action_events(self) -> None:
        """Have the workers tell of their tasks."""
        self._do(self._source.enable_events)

    def _ask(self, text: str, answers: dict[str, tuple[str, str]], act: Callable[[str], Done]) -> None:
        def answered(key: str | None) -> None:
            if key:
                self._do(lambda: act(key))

        self.push_screen(Question(text, answers), answered)

    def _chosen(self) -> Item | None:
        item = self._items.get(self._tasks_list.chosen)
        if item is None:
            self._say([("No task is chosen: the arrows move to one.", "odd")])
        return item

    def _say(self, line: Line) -> None:
        self._done.update(written([line]))

    @work(group="do")
    async def _do(self, act: Callable[[], Done]) -> None:
        done = await asyncio.to_thread(act)
        self._say(done_line(done.line, done.text, good=done.good))
        self._asked = (self._asked[0], "")
        self._look()


def _task(item: Item) -> str:
    return clean(f"{item.name} {item.id}".strip())


def _bare(text: str) -> str:
    """Return a stranger's text as a border may have it for its title, where brackets would be read as markup."""
    return clean(text).replace("[", "\\[")


def show(source: Source, *, name: str, every: float) -> int:
    """Show the screen until somebody leaves it, and return the exit status."""
    screen = Top(source, name=name, every=every)
    before = logging.root.manager.disable
    # What is logged would be written over the screen, which says itself what goes wrong.
    logging.disable(logging.CRITICAL)
    try:
        screen.run()
    finally:
        logging.disable(before)
    return screen.return_code or 0
