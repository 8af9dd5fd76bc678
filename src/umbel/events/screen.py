"""The screen of ``umbel events``: tasks as events tell of them, the latest first, with keys to look into one.

The main thread draws and reads keys; a thread beside it listens. Of tasks and workers everything is shown escaped: it
comes from whoever reaches the broker, and must not move the cursor.
"""

from __future__ import annotations

import contextlib
import curses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from textwrap import wrap
from typing import Any, Final

from umbel import states
from umbel.events.state import State
from umbel.exceptions import BrokerError
from umbel.utils.text import escape_controls, one_line

_REFRESH: Final = 500  # milliseconds between two drawings when no key is pressed
_RETRY_AFTER: Final = 2.0
_MOST: Final = 1000  # tasks that can be scrolled to
_FOOTER: Final = 5  # lines below the tasks
_STATE, _TIME, _UUID, _LEAST = 8, 8, 36, 16  # widths of columns
_KEYS: Final = "j:down k:up i:info t:traceback r:result c:revoke l:rate limit q:quit"
_ESCAPE: Final = "\x1b"
_COLORS: Final = {
    states.SUCCESS: curses.COLOR_GREEN,
    states.REVOKED: curses.COLOR_MAGENTA,
    states.STARTED: curses.COLOR_YELLOW,
    **dict.fromkeys(states.EXCEPTION_STATES - {states.REVOKED}, curses.COLOR_RED),
}


class _Window:
    """The terminal's window, which may change its size at any moment."""

    def __init__(self, window: Any) -> None:
        self.curses = window

    def size(self) -> tuple[int, int]:
        """Return how many lines and columns there are now."""
        height, width = self.curses.getmaxyx()
        return height, width

    def key(self, milliseconds: int) -> str | None:
        """Return the key that was pressed, in upper case, or None if there was none in time."""
        self.curses.timeout(milliseconds)
        try:
            return str(self.curses.getkey()).upper()
        except curses.error:
            return None

    def readline(self, question: str) -> str:
        """Ask in the last line; Escape answers nothing."""
        text = ""
        while True:
            self.line(self.size()[0] - 1, question + text, curses.A_BOLD)
            self.curses.refresh()
            self.curses.timeout(-1)
            key = self.curses.getch()
            if key in (10, 13, curses.KEY_ENTER):
                return text
            if key == 27:
                return ""
            if key in (8, 127, curses.KEY_BACKSPACE):
                text = text[:-1]
            elif 32 <= key < 127:
                text += chr(key)

    def labelled(self, line: int, label: str, text: str) -> None:
        """Write a line that starts with a word in bold."""
        self.line(line, label, curses.A_BOLD)
        self.put(line, len(label), text)

    def line(self, line: int, text: str, attributes: int = 0) -> None:
        """Write a line in place of what is there."""
        with contextlib.suppress(curses.error):
            self.curses.move(line, 0)
            self.curses.clrtoeol()
        self.put(line, 0, text, attributes)

    def put(self, line: int, column: int, text: str, attributes: int = 0) -> None:
        """Write text, escaped; what does not fit is left out."""
        width = self.size()[1]
        # What does not fit, on a screen that was made smaller just now, is left out.
        with contextlib.suppress(curses.error):
            self.curses.addnstr(line, column, one_line(text), max(width - column - 1, 0), attributes)


class CursesMonitor:
    """Shows a state that somebody else feeds. Used by one thread, the one that may call curses.

    ``keymap`` maps upper-case keys to further functions, called without arguments.
    """

    def __init__(self, state: State, app: Any, keymap: Mapping[str, Callable[[], object]] | None = None) -> None:
        self.state = state
        self.app = app
        self.selected_task: str | None = None
        #: Shown until it is taken away, such as that the broker is away.
        self.note = ""
        self._window: Any = None
        self._colors: dict[str, int] = {}
        self._first = 0
        self._tasks: list[Any] = []
        self._leave = False
        self.keymap: dict[str, Callable[[], object]] = {
            "J": lambda: self.move_selection(1),
            "KEY_DOWN": lambda: self.move_selection(1),
            "K": lambda: self.move_selection(-1),
            "KEY_UP": lambda: self.move_selection(-1),
            "I": self.selection_info,
            "\n": self.selection_info,
            "KEY_ENTER": self.selection_info,
            "T": self.selection_traceback,
            "R": self.selection_result,
            "C": self.revoke_selection,
            "L": self.selection_rate_limit,
            "Q": self.leave,
            _ESCAPE: self.leave,
            "\x0c": self.repaint,  # Ctrl+L, as elsewhere
            **(keymap or {}),
        }

    def run(self) -> None:
        """Show it until somebody leaves, and give the terminal back as it was."""
        curses.wrapper(self._run)

    def _run(self, window: Any) -> None:
        self._window = _Window(window)
        with contextlib.suppress(curses.error):  # a terminal without colours, or with a cursor that stays
            curses.curs_set(0)
            curses.use_default_colors()
            for number, color in enumerate(sorted(set(_COLORS.values())), 1):
                curses.init_pair(number, color, -1)
                pair = curses.color_pair(number)
                self._colors.update({state: pair for state, each in _COLORS.items() if each == color})
        while not self._leave:
            self.draw()
            key = self._window.key(_REFRESH)
            if key is not None:
                self.handle_keypress(key)

    def handle_keypress(self, key: str) -> None:
        """Do what a key means."""
        found = self.keymap.get(key)
        if found is not None:
            found()

    def leave(self) -> None:
        """End :meth:`run`."""
        self._leave = True

    def repaint(self) -> None:
        """Have the next drawing write everything, whatever the terminal has lost."""
        self._window.curses.clear()

    # -- the list of tasks ---------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Draw everything anew."""
        self._tasks, workers, counts = self.state.freeze_while(self._look)
        height, width = self._window.size()
        self._window.curses.erase()
        self._window.line(0, f"umbel events  {counts}", curses.A_DIM)
        self._window.line(
            1, row(width - 1, "UUID", "TASK", "WORKER", "TIME", "STATE"), curses.A_BOLD | curses.A_UNDERLINE
        )
        for line, task in enumerate(self._visible(height - 2 - _FOOTER), 2):
            self._draw_task(line, task, width - 1)
        foot = height - _FOOTER
        with contextlib.suppress(curses.error):
            self._window.curses.hline(foot, 0, curses.ACS_HLINE, width - 1)
        self._window.labelled(foot + 1, "Selected: ", self._selection())
        self._window.labelled(foot + 2, "Workers online: ", ", ".join(sorted(workers)) or "none")
        self._window.labelled(foot + 3, "Info: ", self.note or counts)
        self._window.labelled(foot + 4, "Keys: ", _KEYS)
        self._window.curses.refresh()

    def _look(self) -> tuple[list[Any], list[str], str]:
        state = self.state
        alive = [str(worker.hostname) for worker in state.alive_workers()]
        counts = f"events:{state.event_count} tasks:{state.task_count} workers:{len(alive)}/{len(state.workers)}"
        return [task for _, task in state.tasks_by_time(limit=_MOST)], alive, counts

    def _visible(self, room: int) -> Iterator[Any]:
        at = self._position()
        if at is None:
            self._first = 0
        elif at < self._first or at >= self._first + room:
            self._first = max(0, at - room // 2)
        return iter(self._tasks[self._first : self._first + max(room, 0)])

    def _position(self) -> int | None:
        return next((at for at, task in enumerate(self._tasks) if task.uuid == self.selected_task), None)

    def _draw_task(self, line: int, task: Any, width: int) -> None:
        worker = task.worker.hostname if task.worker is not None else "*NONE*"
        text = row(width, task.uuid, task.name or "", worker, _time_of(task.timestamp), task.state)
        chosen = curses.A_STANDOUT if task.uuid == self.selected_task else curses.A_NORMAL
        self._window.line(line, text, chosen)
        at = len(text) - _STATE
        if at > 0:
            self._window.put(line, at, text[at:], self._colors.get(task.state, 0) | chosen)

    def _selection(self) -> str:
        task = self._selected()
        if task is None:
            return "none" if self.selected_task is None else f"{self.selected_task}, which is forgotten"
        return f"{task.uuid} " + " ".join(f"{name}={value}" for name, value in task.info().items())

    def _selected(self) -> Any:
        return self.state.tasks.get(self.selected_task) if self.selected_task else None

    def move_selection(self, direction: int = 1) -> None:
        """Select another task, so many lines below; from the last one on to the first."""
        if self._tasks:
            at = self._position()
            self.selected_task = self._tasks[0 if at is None else (at + direction) % len(self._tasks)].uuid

    # -- looking into one ----------------------------------------------------------------------------------------

    def selection_info(self) -> None:
        """Show all that is known of the selected task."""
        if task := self._selected():
            info = {"args": None, "kwargs": None, **task.info(extra=["name", "state"])}
            lines = [f"{name}: {value}" for name, value in info.items()]
            self.alert(lines, f"Task details for {task.uuid}")
        else:
            curses.beep()

    def selection_traceback(self) -> None:
        """Show the traceback of the selected task, if it failed."""
        task = self._selected()
        if task is not None and task.state in states.EXCEPTION_STATES and task.traceback:
            self.alert(str(task.traceback).split("\n"), f"Task Exception Traceback for {task.uuid}")
        else:
            curses.beep()

    def selection_result(self) -> None:
        """Show what the selected task returned or raised, as its event said it."""
        if task := self._selected():
            found = task.result if task.result is not None else task.exception
            lines = str(found).split("\n") if found is not None else ["- none yet -"]
            self.alert(lines, f"Task Result for {task.uuid}")
        else:
            curses.beep()

    def alert(self, lines: Sequence[str], title: str) -> None:
        """Show lines until a key is pressed; j and k move in what is too long for the screen."""
        first = 0
        while True:
            height, width = self._window.size()
            shown = [part for line in lines for part in wrap(escape_controls(line), max(width - 4, 10)) or [""]]
            room = max(height - 4, 1)
            first = max(0, min(first, len(shown) - room))
            # Cleared, and not only erased: whatever a terminal was left with, this can be read.
            self._window.curses.clear()
            self._window.line(0, title, curses.A_BOLD | curses.A_UNDERLINE)
            for at, text in enumerate(shown[first : first + room], 2):
                self._window.put(at, 2, text)
            more = "j, k: move. " if len(shown) > room else ""
            self._window.line(height - 1, f"{more}Press any key to continue...", curses.A_BOLD)
            self._window.curses.refresh()
            key = self._window.key(-1)
            steps = {"J": 1, "KEY_DOWN": 1, "K": -1, "KEY_UP": -1, "KEY_NPAGE": room, "KEY_PPAGE": -room}
            if key == "KEY_RESIZE":
                continue
            if not more or key not in steps:
                self._window.curses.clear()
                return
            first += steps[key]

    # -- steering ------------------------------------------------------------------------------------------------

    def revoke_selection(self) -> None:
        """Revoke the selected task, and show what the workers say."""
        task = self._selected()
        if task is None:
            curses.beep()
            return
        self._order(f"Revoking {task.uuid}", lambda: self.app.control.revoke(task.uuid, reply=True))

    def selection_rate_limit(self) -> None:
        """Ask for a rate and limit all tasks of the selected one's name to it, in all workers."""
        task = self._selected()
        if task is None or not task.name:
            curses.beep()
            return
        rate = self._window.readline("New rate limit: ").strip()
        if rate:
            self._order(
                f"Limiting {task.name} to {rate}", lambda: self.app.control.rate_limit(task.name, rate, reply=True)
            )

    def _order(self, title: str, send: Callable[[], Any]) -> None:
        self._window.line(self._window.size()[0] - 1, f"{title} ...", curses.A_BOLD)
        self._window.curses.refresh()
        try:
            replies = send()
        except (BrokerError, ValueError) as error:  # ValueError: such as a rate that is none
            self.alert([str(error)], title)
            return
        lines = [
            f"{host}: {reply.get('error') or reply.get('ok') if isinstance(reply, dict) else reply}"
            for each in replies or ()
            for host, reply in each.items()
        ]
        self.alert(lines or ["No replies received in 1s deadline."], title)


def row(width: int, uuid: str, task: str, worker: str, moment: str, state: str) -> str:
    """Return one line of the list, exactly so wide, with what is too long cut in the middle.

    >>> row(60, "9ff2", "proj.tasks.add", "w1@box", "18:00:01", "SUCCESS")
    '9ff2          proj.tasks.add w1@box        18:00:01 SUCCESS '
    """
    rest = width - _STATE - _TIME - 4
    wide = max(min(_UUID, rest - 2 * _LEAST), rest // 3)
    task_wide = (rest - wide + 1) // 2
    columns = ((uuid, wide), (task, task_wide), (worker, rest - wide - task_wide), (moment, _TIME), (state, _STATE))
    return " ".join(_cut(one_line(text), size).ljust(size) for text, size in columns)[:width]


def _time_of(timestamp: Any) -> str:
    """Return the time of day of an event; empty if it says nothing that is a time."""
    try:
        return datetime.fromtimestamp(timestamp).strftime("%H:%M:%S") if timestamp else ""
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def _cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    # Of names the end says more than the beginning.
    return text[: width // 3] + "…" + text[len(text) - (width - width // 3 - 1) :] if width > 3 else text[:width]


def evtop(app: Any) -> None:
    """Show the screen until somebody leaves it; a broker that goes away is waited for."""
    state = app.events.State()
    monitor = CursesMonitor(state, app)
    receivers: list[Any] = []
    ended = threading.Event()

    def heard(event: dict[str, Any]) -> None:
        monitor.note = ""
        state.event(event)

    def listen() -> None:
        while not ended.is_set():
            receivers[:] = [app.events.Receiver(handlers={"*": heard})]
            try:
                receivers[0].capture()
            except BrokerError as error:
                monitor.note = f"{error}; trying again every {_RETRY_AFTER:g} s"
                ended.wait(_RETRY_AFTER)

    # Escape alone must not wait for what might follow it.
    with contextlib.suppress(AttributeError):
        curses.set_escdelay(25)
    thread = threading.Thread(target=listen, name="umbel-events-screen", daemon=True)
    thread.start()
    try:
        monitor.run()
    except KeyboardInterrupt:
        pass
    finally:
        ended.set()
        for receiver in receivers:
            receiver.should_stop = True
        thread.join(_RETRY_AFTER)
