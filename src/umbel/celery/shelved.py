"""``celery.beat.PersistentScheduler``: a schedule in a file, for schedulers that are made of it.

``beat_scheduler`` names it by default, and then Umbel's own beat runs, which keeps what it knows in the broker.
"""

from __future__ import annotations

import contextlib
import dbm
import logging
import os
import shelve
from pickle import UnpicklingError
from typing import Any, Final

from umbel.celery.beats import Scheduler
from umbel.celery.version import __version__

logger = logging.getLogger("celery.beat")

#: What a file that is damaged, or of another program, may raise when its entries are read.
_UNREADABLE: Final = (KeyError, UnicodeDecodeError, TypeError, UnpicklingError, ValueError, *dbm.error)


class PersistentScheduler(Scheduler):
    """A scheduler whose entries are kept in a file, pickled: whoever can write it can run code here."""

    persistence: Any = shelve
    known_suffixes = ("", ".db", ".dat", ".bak", ".dir")
    _store: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.schedule_filename: Any = kwargs.get("schedule_filename")
        super().__init__(*args, **kwargs)

    def _remove_db(self) -> None:
        for suffix in self.known_suffixes:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.schedule_filename + suffix)

    def _open_schedule(self) -> Any:
        return self.persistence.open(self.schedule_filename, writeback=True)

    def _destroy_open_corrupted_schedule(self, exc: BaseException) -> Any:
        logger.error("Removing corrupted schedule file %r: %r", self.schedule_filename, exc, exc_info=True)
        self._remove_db()
        return self._open_schedule()

    def setup_schedule(self) -> None:
        """Open the file, and bring it up to date with ``beat_schedule``."""
        try:
            self._store = self._open_schedule()
            # Some damage shows only now.
            self._store.keys()
        # Each kind of database has errors of its own, and a file of times is worth no more than to begin anew.
        except Exception as error:
            self._store = self._destroy_open_corrupted_schedule(error)
        self._create_schedule()
        settings = {"tz": self.app.conf.timezone, "utc_enabled": self.app.conf.enable_utc}
        self._reset_if_changed("tz", "Timezone changed from %r to %r", settings["tz"])
        self._reset_if_changed("utc_enabled", "enable_utc changed from %r to %r", settings["utc_enabled"])
        entries = self._store.setdefault("entries", {})
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)
        self._store.update({"__version__": __version__, **settings})
        self.sync()
        logger.debug("Current schedule:\n%s", "\n".join(map(repr, entries.values())))

    def _reset_if_changed(self, name: str, text: str, now: Any) -> None:
        before = self._store.get(name)
        if before is not None and before != now:
            logger.warning("Reset: " + text, before, now)
            self._store.clear()

    def _create_schedule(self) -> None:
        """Make sure that there are entries that can be read, those of another release not counted."""
        try:
            self._store["entries"]
        except _UNREADABLE as error:
            if not isinstance(error, KeyError):
                logger.warning("DB Reset: Cannot load the stored entries, recreating them: %r", error)
            try:
                self._store["entries"] = {}
            except _UNREADABLE as again:
                self._store = self._destroy_open_corrupted_schedule(again)
                self._store["entries"] = {}
            return
        for field in ("__version__", "tz", "utc_enabled"):
            if field not in self._store:
                logger.warning("DB Reset: Account for new %s field", field)
                self._store.clear()
                return

    def get_schedule(self) -> Any:
        """Return the entries of the file."""
        return self._store["entries"]

    def set_schedule(self, schedule: Any) -> None:
        """Replace the entries of the file."""
        self._store["entries"] = schedule

    def sync(self) -> None:
        """Write the file."""
        if self._store is not None:
            self._store.sync()

    def close(self) -> None:
        """Write the file and close it."""
        try:
            super().close()
        finally:
            if self._store is not None:
                self._store.close()

    @property
    def info(self) -> str:
        """The line of the banner that names the file."""
        return f"    . db -> {self.schedule_filename}"
