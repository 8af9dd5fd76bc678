"""``celery.platforms``: exit codes, pid files, signals and users."""

from __future__ import annotations

import contextlib
import errno
import os
import platform as _platform
import signal as _signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NoReturn

from umbel.exceptions import SecurityError

EX_OK: Final = getattr(os, "EX_OK", 0)
EX_FAILURE: Final = 1
EX_USAGE: Final = getattr(os, "EX_USAGE", 64)
EX_UNAVAILABLE: Final = getattr(os, "EX_UNAVAILABLE", 69)
EX_CANTCREAT: Final = getattr(os, "EX_CANTCREAT", 73)

SYSTEM: Final = _platform.system()
IS_macOS: Final = SYSTEM == "Darwin"
IS_WINDOWS: Final = SYSTEM == "Windows"

SIGNAMES: Final = {sig for sig in dir(_signal) if sig.startswith("SIG") and not sig.startswith("SIG_")}
SIGMAP: Final = {getattr(_signal, name): name for name in SIGNAMES}

_DAEMON: Final = "a worker is put into the background by 'umbel worker --detach', or by systemd"


class LockFailed(Exception):
    """Raised if a pid file is held by another process."""


def pyimplementation() -> str:
    """Return the name of the Python implementation."""
    return _platform.python_implementation()


def isatty(fh: Any) -> bool:
    """Say whether a file is a terminal."""
    with contextlib.suppress(AttributeError):
        return bool(fh.isatty())
    return False


def strargv(argv: Iterable[str]) -> str:
    """Return a command line without its program (and without ``manage.py``)."""
    words = [*argv]
    return " ".join(words[2 if words and "manage" in words[0] else 1 :])


def get_errno_name(n: Any) -> int:
    """Return the number of an error's name; a number as it is."""
    return int(getattr(errno, n)) if isinstance(n, str) else int(n)


@contextmanager
def ignore_errno(*errnos: Any, types: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Ignore errors with these numbers or names in the block."""
    numbers = [get_errno_name(each) for each in errnos]
    try:
        yield
    except types as error:
        if getattr(error, "errno", None) not in numbers:
            raise


class Pidfile:
    """A file that holds the id of the one process that may run."""

    path: str

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def acquire(self) -> Pidfile:
        """Write the file. Raises :exc:`LockFailed` where it is there."""
        try:
            fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except OSError as error:
            raise LockFailed(str(error)) from error
        with os.fdopen(fd, "w") as file:
            file.write(f"{os.getpid()}\n")
        return self

    __enter__ = acquire

    def is_locked(self) -> bool:
        """Say whether the file is there."""
        return os.path.exists(self.path)

    def release(self, *args: Any) -> None:
        """Remove the file, if it is ours."""
        if self.read_pid() == os.getpid():
            self.remove()

    __exit__ = release

    def read_pid(self) -> int | None:
        """Return what the file says; None where there is none. ``ValueError`` for one that is broken."""
        try:
            with open(self.path) as file:
                line = file.readline()
        except FileNotFoundError:
            return None
        if not line.endswith("\n"):
            raise ValueError(f"Partial or invalid pidfile {self.path}")
        try:
            return int(line.strip())
        except ValueError:
            raise ValueError(f"pidfile {self.path} contents invalid.") from None

    def remove(self) -> None:
        """Remove the file."""
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.unlink(self.path)

    def remove_if_stale(self) -> bool:
        """Remove the file if the process that it names does not run; say whether there is none now."""
        try:
            pid = self.read_pid()
        except ValueError:
            self.remove()
            return True
        if not pid:
            self.remove()
            return True
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            self.remove()
            return True
        except PermissionError:
            return False
        return False


PIDFile = Pidfile


def create_pidlock(pidfile: str) -> Pidfile:
    """Hold a pid file until the process ends. Exits with 73 where another process holds it."""
    import atexit

    lock = Pidfile(pidfile)
    if lock.is_locked() and not lock.remove_if_stale():
        sys.stderr.write(
            f"ERROR: Pidfile ({pidfile}) already exists. Process {lock.read_pid()} seems to run already.\n"
        )
        raise SystemExit(EX_CANTCREAT)
    lock.acquire()
    atexit.register(lock.release)
    return lock


def detached(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuse, and say how a worker is put into the background."""
    raise NotImplementedError(_DAEMON)


def fd_by_path(paths: Iterable[str]) -> list[int]:
    """Return the open descriptors of these files."""
    wanted = {os.stat(path)[1:3] for path in paths}
    found = []
    for fd in range(1, get_fdmax(2048)):
        with contextlib.suppress(OSError):
            if os.fstat(fd)[1:3] in wanted:
                found.append(fd)
    return found


def get_fdmax(default: int | None = None) -> int:
    """Return how many files this process may open."""
    with contextlib.suppress(Exception):  # there may be no limit, or no way to ask
        return min(os.sysconf("SC_OPEN_MAX"), default or 1 << 20)
    return default or 2048


def close_open_fds(keep: Iterable[Any] | None = None) -> None:
    """Close every descriptor but these and the standard ones."""
    kept = {each if isinstance(each, int) else each.fileno() for each in keep or ()}
    for fd in range(3, get_fdmax(2048)):
        if fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


# -- users -----------------------------------------------------------------------------------------------------------


def parse_uid(uid: Any) -> int:
    """Return the id of a user's name or number."""
    try:
        return int(uid)
    except ValueError:
        import pwd

        try:
            return pwd.getpwnam(uid).pw_uid
        except (AttributeError, KeyError):
            raise KeyError(f"User does not exist: {uid}") from None


def parse_gid(gid: Any) -> int:
    """Return the id of a group's name or number."""
    try:
        return int(gid)
    except ValueError:
        import grp

        try:
            return grp.getgrnam(gid).gr_gid
        except (AttributeError, KeyError):
            raise KeyError(f"Group does not exist: {gid}") from None


def setgid(gid: Any) -> None:
    """Become a member of this group alone."""
    os.setgid(parse_gid(gid))


def setuid(uid: Any) -> None:
    """Become this user."""
    os.setuid(parse_uid(uid))


def setgroups(groups: Iterable[int]) -> None:
    """Be a member of these groups."""
    os.setgroups(list(groups))


def initgroups(uid: int, gid: int) -> None:
    """Be a member of a user's groups, and of one more."""
    import pwd

    os.initgroups(pwd.getpwuid(uid).pw_name, gid)


def maybe_drop_privileges(uid: Any = None, gid: Any = None) -> None:
    """Become this user and group, where they are given."""
    if gid:
        setgid(gid)
    if uid:
        setuid(uid)


def check_privileges(accept_content: Iterable[str]) -> None:
    """Raise :exc:`SecurityError` if root would unpickle what anybody sends, unless ``C_FORCE_ROOT`` is set."""
    root = hasattr(os, "getuid") and os.getuid() == 0
    risky = {"pickle", "application/x-python-serialize"} & set(accept_content)
    if root and risky and not os.environ.get("C_FORCE_ROOT"):
        raise SecurityError("a worker that accepts pickle must not run as root, unless C_FORCE_ROOT=1 is set")


# -- signals ---------------------------------------------------------------------------------------------------------


class Signals:
    """Signal handlers by name: ``signals["INT"] = handler``. In the main thread only."""

    ignored = _signal.SIG_IGN
    default = _signal.SIG_DFL

    def signum(self, name: Any) -> int:
        """Return the number of a signal's name, with or without ``SIG``."""
        if isinstance(name, int):
            return name
        if not isinstance(name, str) or not name.isupper():
            raise TypeError("signal name must be uppercase string.")
        full = name if name.startswith("SIG") else f"SIG{name}"
        return int(getattr(_signal, full))

    def supported(self, name: str) -> bool:
        """Say whether this system has the signal."""
        return hasattr(_signal, name if name.startswith("SIG") else f"SIG{name}")

    def reset(self, *names: str) -> None:
        """Give these their default handlers."""
        self.update(dict.fromkeys(names, self.default))

    def ignore(self, *names: str) -> None:
        """Ignore these."""
        self.update(dict.fromkeys(names, self.ignored))

    def __getitem__(self, name: str) -> Any:
        return _signal.getsignal(self.signum(name))

    def __setitem__(self, name: str, handler: Any) -> None:
        # Elsewhere than in the main thread, and for a signal that this system lacks, nothing can be done.
        with contextlib.suppress(AttributeError, ValueError):
            _signal.signal(self.signum(name), handler)

    def update(self, _d_: Mapping[str, Any] | None = None, **sigmap: Any) -> None:
        """Set several handlers."""
        for name, handler in {**(_d_ or {}), **sigmap}.items():
            self[name] = handler

    def arm_alarm(self, seconds: float) -> None:
        """Ask for SIGALRM after some seconds."""
        _signal.setitimer(_signal.ITIMER_REAL, seconds)

    def reset_alarm(self) -> None:
        """Take that back."""
        _signal.alarm(0)


signals = Signals()


def signal_name(signum: int) -> str:
    """Return a signal's name without ``SIG``."""
    return SIGMAP[signum][3:]


def set_pdeathsig(name: Any) -> None:
    """Do nothing: Umbel's worker processes die with their parent in any case."""


def set_process_title(progname: str, info: str | None = None) -> str:
    """Return the title that a process list would show; it is set where ``setproctitle`` is installed."""
    title = f"[{progname}] {info}" if info else f"[{progname}]"
    with contextlib.suppress(ImportError):
        from setproctitle import setproctitle  # type: ignore[import-not-found, unused-ignore]

        setproctitle(title)
    return title


def set_mp_process_title(progname: str, info: str | None = None, hostname: str | None = None) -> str:
    """Do :func:`set_process_title` with the name of this process in it."""
    from multiprocessing import current_process

    name = current_process().name
    return set_process_title(f"{progname}: {hostname.split('.')[0]}:{name}" if hostname else f"{progname}:{name}", info)
