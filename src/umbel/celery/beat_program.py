"""``celery.apps.beat``: beat that a program runs itself, ``app.Beat(loglevel="INFO").run()``."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

from umbel.beat.banner import banner, starting
from umbel.beat.choosing import Runs, make_beat
from umbel.beat.remote import BeatRemote, beat_nodename
from umbel.celery.beat_service import Service
from umbel.cli.daemon import pidfile
from umbel.utils.log import mlevel

logger = logging.getLogger("celery.beat")


class Beat:
    """Beat with the options of the ``beat`` command; in the main thread it ends on SIGTERM and SIGINT."""

    Service: Any = Service
    app: Any = None

    def __init__(
        self,
        max_interval: float | None = None,
        app: Any = None,
        socket_timeout: int = 30,
        pidfile: str | None = None,
        no_color: bool | None = None,
        loglevel: str | int = "WARN",
        logfile: str | None = None,
        schedule: str | None = None,
        scheduler: Any = None,
        scheduler_cls: Any = None,
        redirect_stdouts: bool | None = None,
        redirect_stdouts_level: str | None = None,
        quiet: bool = False,
        remote_control: bool | None = None,
        hostname: str | None = None,
        **kwargs: Any,
    ) -> None:
        """``socket_timeout`` is accepted: connections have timeouts of their own."""
        self.app = app = app or self.app
        self.max_interval = max_interval
        self.pidfile = pidfile
        self.no_color = no_color
        self.loglevel = mlevel(loglevel)
        self.logfile = logfile
        self.schedule = app.either("beat_schedule_filename", schedule)
        self.scheduler_cls = app.either("beat_scheduler", scheduler, scheduler_cls)
        self.redirect_stdouts = redirect_stdouts
        self.redirect_stdouts_level = redirect_stdouts_level
        self.quiet = quiet
        answers = app.conf.beat_enable_remote_control if remote_control is None else remote_control
        self.hostname = beat_nodename(hostname) if answers else None
        self._beat: Runs | None = None

    def run(self) -> None:
        """Send what is due until stopped."""
        if not self.quiet:
            print(starting())
        self.init_loader()
        self.start_scheduler()

    def init_loader(self) -> None:
        """Import the modules of tasks."""
        self.app.import_default_modules()
        self.app.finalize()

    def setup_logging(self, colorize: bool | None = None) -> None:
        """Set up logging as the command does."""
        color = colorize if colorize is not None or self.no_color is None else not self.no_color
        self.app.log.setup(self.loglevel, self.logfile, self.redirect_stdouts, self.redirect_stdouts_level, color)

    def start_scheduler(self) -> None:
        """Run the scheduler until it is stopped."""
        beat = self._beat = make_beat(
            self.app, scheduler=self.scheduler_cls, schedule_filename=self.schedule, max_interval=self.max_interval
        )
        with pidfile(self.pidfile):
            if not self.quiet:
                print(self.banner(beat), flush=True)
            self.setup_logging()
            remote = None if self.hostname is None else BeatRemote(self.app, beat, self.hostname)
            if remote is not None:
                remote.start()
            try:
                self.install_sync_handler(beat)
                beat.run()
            except Exception as error:
                logger.critical("beat raised exception %s: %r", type(error), error, exc_info=True)
                raise
            finally:
                if remote is not None:
                    remote.close()

    def banner(self, service: Any = None) -> str:
        """Return what is printed at the start."""
        level = logging.getLevelName(self.loglevel)
        beat = self._beat if self._beat is not None else make_beat(self.app, scheduler=self.scheduler_cls)
        return banner(self.app, beat, logfile=self.logfile, loglevel=level, node=self.hostname)

    def install_sync_handler(self, service: Any) -> None:
        """Have SIGTERM and SIGINT stop it, where signals can be had."""
        if threading.current_thread() is not threading.main_thread():
            return

        def stop(number: int, frame: Any) -> None:
            # Not in the handler: the main thread may hold the very lock that a stop needs.
            threading.Thread(target=service.stop, daemon=True).start()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    def stop(self) -> None:
        """Have :meth:`run` return; from any thread."""
        if self._beat is not None:
            self._beat.stop()
