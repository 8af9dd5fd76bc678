"""Parts of the screen: a table that stays where one looks, a question, and the help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.coordinate import Coordinate
from textual.events import Key
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import DataTable, Static

from umbel.top.telling import Line, Words

_LOOKS: Final = {
    "dim": "#9e9e9e", "strong": "bold", "good": "green", "odd": "yellow", "bad": "red", "busy": "cyan",
}  # fmt: skip


def drawn(words: Words, *, right: bool = False) -> Text:
    """Return a piece of text as rich shows it. It is never read as markup."""
    text, style = words
    looks = " ".join(_LOOKS[each] for each in style.split())
    return Text(text, style=looks, justify="right" if right else "default", end="")


def written(lines: Sequence[Line]) -> Text:
    """Return lines as one text."""
    return Text("\n").join(Text("").join(drawn(words) for words in line) for line in lines)


class Listing(DataTable[Text]):
    """A table of things with keys. Shown anew, its cursor stays on the same thing, on the same line of the screen.

    There is no cursor until somebody moves it, so that nothing is chosen by itself that others may push away.
    """

    class Moved(Message):
        """Something else was chosen, or nothing is any more."""

    def __init__(self, columns: Sequence[tuple[str, bool]], *, id: str) -> None:
        """``columns`` are their titles, and whether they hold numbers."""
        super().__init__(id=id, cursor_type="row", show_cursor=False)
        self._titles = columns
        self._keys: list[str] = []
        self._cells: list[list[Words]] = []

    def on_mount(self) -> None:
        """Make the columns."""
        for title, number in self._titles:
            self.add_column(Text(title, style="bold", justify="right" if number else "default"))

    @property
    def chosen(self) -> str:
        """The key of the thing under the cursor, "" where there is none."""
        there = self.show_cursor and 0 <= self.cursor_row < len(self._keys)
        return self._keys[self.cursor_row] if there else ""

    def choose(self, lines: int) -> None:
        """Move the cursor by so many lines; from nowhere it comes to the first that is seen."""
        if not self.show_cursor:
            self.show_cursor = bool(self._keys)
            self.move_cursor(row=round(self.scroll_y))
            self.post_message(self.Moved())
        elif lines > 0:
            super().action_cursor_down()
        else:
            super().action_cursor_up()

    def release(self) -> None:
        """Choose nothing, and go back to the top."""
        self.move_cursor(row=0)
        self.show_cursor = False
        self.scroll_home(animate=False)
        self.post_message(self.Moved())

    def action_cursor_down(self) -> None:
        """Choose what is below."""
        self.choose(1)

    def action_cursor_up(self) -> None:
        """Choose what is above."""
        self.choose(-1)

    def on_mouse_down(self) -> None:
        """Have the click choose."""
        self.show_cursor = True

    def on_data_table_row_highlighted(self) -> None:
        """Say that the cursor moved."""
        self.post_message(self.Moved())

    def show(self, rows: Sequence[tuple[str, list[Words]]]) -> None:
        """Show these rows. Only what differs is written."""
        chosen, before = self.chosen, self.cursor_row
        self._keys = [key for key, _ in rows]
        for at, (_, cells) in enumerate(rows):
            if at >= len(self._cells):
                self._cells.append(cells)
                self.add_row(*(drawn(words, right=self._titles[column][1]) for column, words in enumerate(cells)))
                continue
            for column, words in enumerate(cells):
                if words != self._cells[at][column]:
                    text = drawn(words, right=self._titles[column][1])
                    self.update_cell_at(Coordinate(at, column), text, update_width=True)
            self._cells[at] = cells
        while len(self._cells) > len(rows):
            self._cells.pop()
            self.remove_row(self.coordinate_to_cell_key(Coordinate(len(self._cells), 0)).row_key)
        if chosen and chosen not in self._keys:
            # Whatever is there instead was not meant.
            self.show_cursor = False
        elif chosen and (now := self._keys.index(chosen)) != before:
            self.move_cursor(row=now, scroll=False)
            if self.scroll_y or now >= self.size.height - self.header_height:
                self.scroll_to(y=self.scroll_y + now - before, animate=False)


class Question(ModalScreen[str]):
    """Asks before something is done; ends with the key that was pressed, "" for no."""

    def __init__(self, text: str, answers: Mapping[str, tuple[str, str]]) -> None:
        """``answers`` are by their keys: what each does, and the command line that does the same."""
        super().__init__()
        self._text = text
        self._answers = answers

    def compose(self) -> ComposeResult:
        """Make the box."""
        lines: list[Line] = [[(self._text, "strong")], []]
        for key, (label, line) in self._answers.items():
            lines += [[(f" {key} ", "busy strong"), (f" {label}", "")], [(f"     $ {line}", "dim")], []]
        lines.append([(" n ", "busy strong"), (" nothing", "")])
        with Vertical(classes="box"):
            yield Static(written(lines))

    def on_key(self, event: Key) -> None:
        """Take the answer."""
        event.stop()
        if event.key in self._answers:
            self.dismiss(event.key)
        elif event.key in ("n", "q", "escape"):
            self.dismiss("")


class Help(ModalScreen[None]):
    """The keys, and what each is on the command line."""

    def __init__(self, lines: Sequence[Line]) -> None:
        super().__init__()
        self._lines = lines

    def compose(self) -> ComposeResult:
        """Make the box."""
        with Vertical(classes="box"):
            yield Static(written(self._lines))

    def on_key(self, event: Key) -> None:
        """End with any key."""
        event.stop()
        self.dismiss(None)
