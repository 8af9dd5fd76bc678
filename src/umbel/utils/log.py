"""Logging as Celery's users know it: its logger names, its line formats, and its rules for setting them up.

::

    root                 [time: LEVEL/process] message
    ├─ celery            what the package itself says
    │   └─ celery.task   [time: LEVEL/process] task_name[task_id]: message     what task modules say
    └─ celery.redirected what tasks print, where standard output is redirected

Nothing is configured by importing; only :class:`Logging` adds handlers, when a program starts.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from logging.handlers import WatchedFileHandler
from typing import Any, TextIO

from umbel import signals
from umbel.current import top_frame
from umbel.utils.files import open_private
from umbel.utils.jsonlog import JsonFormatter
from umbel.utils.nodenames import node_format, set_process_index
from umbel.utils.text import did_you_mean, escape_controls, one_line

PROCESS_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
TASK_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"

LOG_LEVELS: dict[str, int] = {
    name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "WARN", "ERROR", "CRITICAL", "FATAL")
} | {"NOTSET": logging.NOTSET}

RESERVED_LOGGER_NAMES = frozenset({"celery", "celery.task"})

_COLORS = {"DEBUG": 34, "WARNING": 33, "ERROR": 31, "CRITICAL": 35}

_in_sighandler = False


# -- loggers -----------------------------------------------------------------------------------------------------


def get_logger(name: str) -> logging.Logger:
    """Return the logger of this name; it is silent, and never complains, until logging is set up."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger


base_logger = get_logger("celery")
task_logger = get_logger("celery.task")
worker_logger = get_logger("celery.worker")


def get_task_logger(name: str) -> logging.Logger:
    """Return a logger for a module of tasks: each line carries the name and id of the task that runs.

    >>> get_task_logger("shop.tasks").parent.name
    'celery.task'
    """
    if name in RESERVED_LOGGER_NAMES:
        raise RuntimeError(f"logger name {name!r} is reserved; use the module's __name__")
    logger = get_logger(name)
    ancestor: logging.Logger | None = logger
    while ancestor is not None and ancestor is not task_logger:
        ancestor = ancestor.parent
    if ancestor is None:
        logger.parent = task_logger
    return logger


def mlevel(level: int | str | None) -> int:
    """Return a level as a number; names are read in any case, nothing is 0."""
    if not level:
        return 0
    if isinstance(level, str) and not level.isdigit():
        if level.upper() not in LOG_LEVELS:
            hint = did_you_mean(level.upper(), LOG_LEVELS)
            raise ValueError(f"unknown log level {level!r}; use one of {', '.join(LOG_LEVELS)}{hint}")
        return LOG_LEVELS[level.upper()]
    return int(level)


def set_process_name(index: int, name: str | None = None) -> None:
    """Say in every log line that this is worker process ``index`` (from 1), ``ForkPoolWorker-<index>``."""
    # logging takes the name from here, and only if the module is loaded.
    from multiprocessing import current_process

    current_process().name = name or f"ForkPoolWorker-{index}"
    set_process_index(index)


def set_in_sighandler(value: bool) -> None:
    """Say whether a signal handler runs, so that what it prints goes to the real standard error."""
    global _in_sighandler
    _in_sighandler = value


@contextlib.contextmanager
def in_sighandler() -> Iterator[None]:
    """Mark the block as running in a signal handler: taking a logging lock there could wait for ever."""
    set_in_sighandler(True)
    try:
        yield
    finally:
        set_in_sighandler(False)


# -- formatters --------------------------------------------------------------------------------------------------


class ColorFormatter(logging.Formatter):
    """Colours a record by its level: debug blue, warnings yellow, errors red, critical magenta."""

    def __init__(self, fmt: str | None = None, use_color: bool = True, datefmt: str | None = None) -> None:
        super().__init__(fmt, datefmt)
        self.use_color = use_color

    def formatException(self, ei: Any) -> str:
        """Return the traceback. The text of the error may be a stranger's: it neither forges a record nor escapes."""
        text = escape_controls(super().formatException(ei))
        # Every record begins with a bracket, and no line of a traceback itself does.
        return text.replace("\n[", "\n  [")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, safe to write to any UTF-8 stream."""
        # A handler before this one may have left its own rendering there, which would be used as it is.
        record.exc_text = None
        line = super().format(record).encode("utf-8", "backslashreplace").decode("utf-8")
        color = _COLORS.get(record.levelname)
        return f"\033[1;{color}m{line}\033[0m" if color and self.use_color else line


class TaskFormatter(ColorFormatter):
    """Adds ``task_name`` and ``task_id`` of the task that runs, or ``???``, to each record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Name and id came with a message, so they are kept from forging further lines."""
        frame = top_frame()
        request = None
        if frame is not None:
            request = frame.request if frame.request is not None else getattr(frame.task, "request", None)
        values = record.__dict__
        if frame is not None and request:
            values["task_id"] = one_line(request.id)
            values["task_name"] = one_line(frame.task.name)
        else:
            values.setdefault("task_name", "???")
            values.setdefault("task_id", "???")
        return super().format(record)


class PrivateFileHandler(WatchedFileHandler):
    """Logs to a file, and to the new one after a rotation. A file that it makes can be read by its owner alone."""

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=open_private)


# -- standard output ---------------------------------------------------------------------------------------------


class LoggingProxy:
    """A file that writes to a logger: what replaces ``sys.stdout`` and ``sys.stderr`` in a worker."""

    mode = "w"
    encoding = "utf-8"
    errors = "backslashreplace"
    name: str | None = None
    _thread = threading.local()

    def __init__(self, logger: logging.Logger, loglevel: int | str | None = None, real: TextIO | None = None) -> None:
        self.logger = logger
        self.loglevel = mlevel(loglevel) or logger.level or logging.ERROR
        self.closed = False
        self._real = real
        for handler in logger.handlers:
            # The usual one prints to sys.stderr, which is this very object.
            setattr(handler, "handleError", _print_logging_error)  # noqa: B010

    def write(self, data: str | bytes) -> int:
        """Log the text, without the line break at its end; an empty line is dropped."""
        text = data if isinstance(data, str) else data.decode("utf-8", "backslashreplace")
        if _in_sighandler:
            print(text, file=sys.__stderr__)
            return len(data)
        if self.closed or getattr(self._thread, "writing", False):
            return len(data)  # the logger is writing to us: logging that again would never end
        line = text.rstrip("\n")
        if line:
            self._thread.writing = True
            try:
                self.logger.log(self.loglevel, "%s", line)
            finally:
                self._thread.writing = False
        return len(data)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Drop whatever is written from now on."""
        self.closed = True

    def isatty(self) -> bool:
        """Say that this is no terminal."""
        return False

    def writable(self) -> bool:
        """Say that this can be written to."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the real stream, for subprocesses and for faulthandler."""
        real = self._real or sys.__stderr__
        if real is None:
            raise OSError("there is no real stream behind this one")
        return real.fileno()


def _print_logging_error(record: logging.LogRecord) -> None:
    with contextlib.suppress(OSError):
        traceback.print_exc(file=sys.__stderr__)


# -- setting it up -----------------------------------------------------------------------------------------------


class Logging:
    """Sets logging up once per process, by the settings. ``app.log`` is one."""

    already_setup = False  # of the process, whichever app did it

    def __init__(self, conf: Any, as_json: bool | None = None) -> None:
        """``as_json`` says whether lines are JSON; if not given, the setting ``worker_log_json`` does."""
        self.conf = conf
        self.as_json = as_json

    def setup(
        self,
        loglevel: int | str | None = None,
        logfile: str | TextIO | None = None,
        redirect_stdouts: bool | None = None,
        redirect_level: int | str | None = None,
        colorize: bool | None = None,
        hostname: str | None = None,
    ) -> bool:
        """Set up loggers and, unless a receiver of ``setup_logging`` took over, redirect standard output.

        Returns whether a receiver took over. What is not given comes from the settings.
        """
        redirect = self.conf.worker_redirect_stdouts if redirect_stdouts is None else redirect_stdouts
        handled = self.setup_logging_subsystem(loglevel, logfile, colorize=colorize, hostname=hostname)
        if redirect and not handled:
            self.redirect_stdouts(redirect_level or self.conf.worker_redirect_stdouts_level)
        logging.captureWarnings(True)
        return handled

    def setup_logging_subsystem(
        self,
        loglevel: int | str | None = None,
        logfile: str | TextIO | None = None,
        format: str | None = None,
        colorize: bool | None = None,
        hostname: str | None = None,
        datefmt: str | None = None,
    ) -> bool:
        """Set up the root and the task loggers; a second call does nothing. Returns whether a receiver took over.

        What a receiver raises is raised here: a program with half its logging would fail in silence.
        """
        if Logging.already_setup:
            return False
        if isinstance(logfile, str) and hostname:
            logfile = node_format(logfile, hostname)
        level = mlevel(loglevel) or logging.WARNING
        as_json = self._writes_json(format)
        format = format or self.conf.worker_log_format or PROCESS_FORMAT
        colorize = self.supports_color(colorize, logfile)
        named = {"loglevel": level, "logfile": logfile, "format": format, "colorize": colorize}
        responses = signals.setup_logging.send(sender=None, **named)
        for _, response in responses:
            if isinstance(response, Exception):
                raise response
        Logging.already_setup = True
        if responses:
            return True
        root = logging.getLogger()
        if self.conf.worker_hijack_root_logger:
            for logger in (root, base_logger, task_logger, get_logger("celery.redirected")):
                logger.handlers = []
        datefmt = datefmt or self.conf.worker_log_datefmt
        _add_handler(root, logfile, JsonFormatter() if as_json else ColorFormatter(format, colorize, datefmt))
        root.setLevel(level)
        signals.after_setup_logger.send(sender=None, logger=root, **named)
        self.setup_task_loggers(level, logfile, colorize=colorize)
        return False

    def setup_task_loggers(
        self,
        loglevel: int | str | None = None,
        logfile: str | TextIO | None = None,
        format: str | None = None,
        colorize: bool | None = None,
        propagate: bool = False,
        datefmt: str | None = None,
    ) -> logging.Logger:
        """Set up the logger above all of :func:`get_task_logger` and return it."""
        level = mlevel(loglevel) or logging.WARNING
        as_json = self._writes_json(format)
        format = format or self.conf.worker_task_log_format or TASK_FORMAT
        colorize = self.supports_color(colorize, logfile)
        datefmt = datefmt or self.conf.worker_task_log_datefmt
        _add_handler(task_logger, logfile, JsonFormatter() if as_json else TaskFormatter(format, colorize, datefmt))
        task_logger.setLevel(level)
        task_logger.propagate = propagate
        signals.after_setup_task_logger.send(
            sender=None, logger=task_logger, loglevel=level, logfile=logfile, format=format, colorize=colorize
        )
        return task_logger

    def _writes_json(self, format: str | None) -> bool:
        # Who asks for a format in a call wants that one.
        return format is None and bool(self.conf.worker_log_json if self.as_json is None else self.as_json)

    def redirect_stdouts(self, loglevel: int | str | None = None, name: str = "celery.redirected") -> None:
        """Log what is printed from now on, under the logger ``celery.redirected``."""
        self.redirect_stdouts_to_logger(get_logger(name), loglevel)

    def redirect_stdouts_to_logger(
        self, logger: logging.Logger, loglevel: int | str | None = None, stdout: bool = True, stderr: bool = True
    ) -> LoggingProxy:
        """Replace ``sys.stdout`` and ``sys.stderr`` by the logger and return what replaced them."""
        proxy = LoggingProxy(logger, loglevel)
        for handler in logging.getLogger().handlers:
            setattr(handler, "handleError", _print_logging_error)  # noqa: B010
        if stdout:
            sys.stdout = LoggingProxy(logger, loglevel, real=sys.__stdout__)
        if stderr:
            sys.stderr = proxy
        return proxy

    def supports_color(self, colorize: bool | None = None, logfile: str | TextIO | None = None) -> bool:
        """Say whether to colour: never into a file or a pipe, nor where ``worker_log_color`` is off."""
        wanted = self.conf.worker_log_color if colorize is None else colorize
        if wanted is False or sys.platform == "win32" or logfile is not None:
            return False
        return sys.__stderr__ is not None and sys.__stderr__.isatty()

    def get_default_logger(self, name: str = "celery") -> logging.Logger:
        """Return the package's logger."""
        return get_logger(name)


def setup_logging(
    conf: Any,
    loglevel: int | str | None = None,
    logfile: str | TextIO | None = None,
    colorize: bool | None = None,
    hostname: str | None = None,
    redirect_stdouts: bool | None = None,
    redirect_level: int | str | None = None,
    force: bool = False,
    as_json: bool | None = None,
) -> bool:
    """Set up this process's logging by the settings; see :meth:`Logging.setup`.

    :param force: do it again although it was done, as a child does whose log file has ``%i`` in its name.
    """
    if force:
        Logging.already_setup = False
    return Logging(conf, as_json).setup(loglevel, logfile, redirect_stdouts, redirect_level, colorize, hostname)


def _add_handler(logger: logging.Logger, logfile: str | TextIO | None, formatter: logging.Formatter) -> None:
    if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        return  # the user has set it up
    handler: logging.Handler
    if isinstance(logfile, str):
        handler = PrivateFileHandler(logfile, encoding="utf-8")
    else:
        # The real one: sys.stderr may be a proxy that logs.
        handler = logging.StreamHandler(sys.__stderr__ if logfile is None else logfile)
    handler.setFormatter(formatter)
    logger.addHandler(handler)
