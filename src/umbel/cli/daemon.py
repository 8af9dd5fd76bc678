"""Running in the background: detaching from the terminal, the pid file, and giving up privileges."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from umbel.cli.errors import EX_CANT_CREATE, EX_CONFIG, Trouble
from umbel.utils.files import read_small

if sys.platform != "win32":
    import fcntl

_STARTED = b"1"
# No sign: to the kernel a negative number is a whole group of processes.
_PID = re.compile(rb"\s*(\d{1,9})\s*")
_SLACK = 2.0  # seconds: clocks of file systems are coarse
_pipes: list[int] = []  # to the process that waits; at most one


def detach() -> int | None:
    """Leave the terminal. In the process that goes on the return value is None.

    The one that was started waits until the other has called :func:`detached` or ended, and returns its exit code.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            started = pipe.read(1) == _STARTED
        if started:
            return 0
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status) or 1
    os.close(read)
    os.setsid()
    _pipes.append(write)
    return None


def detached() -> None:
    """Tell the process that was started that this one runs, and let go of the terminal. Else does nothing."""
    if not _pipes:
        return
    pipe = _pipes.pop()
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    if null > 2:
        os.close(null)
    os.write(pipe, _STARTED)
    os.close(pipe)


@contextlib.contextmanager
def caught(names: Sequence[str], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Have these signals, those of them that this system has, call the handler while the block runs."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextlib.contextmanager
def pidfile(path: str | None) -> Iterator[None]:
    """Keep this process's id in a file, and a lock on the file, while the block runs.

    Ends the command with exit code 73 if a living process has the file; one left by a dead process is replaced, also
    where another process got its number meanwhile.
    """
    if not path:
        yield
        return
    path = os.path.abspath(path)
    held = _create(path)
    try:
        yield
    finally:
        # Closing any descriptor of the file ends the lock, and reading it closes one: this comes last.
        if _owner(path) == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(held)


def _create(path: str) -> int:
    """Make the file and return its descriptor, whose lock says that this process lives."""
    for _ in range(3):
        try:
            held = _place(path)
            if held is not None:
                return held
            owner = living_owner(path) or _take_away(path)
        except OSError as error:
            raise Trouble(
                f"--pidfile {path}: {error.strerror}; give a file in a folder that is there and that this user may "
                "write to, or none",
                EX_CANT_CREATE,
            ) from error
        if owner:
            raise Trouble(
                f"Pidfile ({path}) already exists. Seems we're already running? (pid: {owner}); end that process, or "
                "give this one another --pidfile",
                EX_CANT_CREATE,
            )
    raise Trouble(f"--pidfile {path}: another process creates it at the same time", EX_CANT_CREATE)


def _place(path: str) -> int | None:
    """Make the file with our id in it; in one step, since one that is seen empty would be taken for a stale one."""
    made = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(made)
    held = _write(made)
    if held is None:
        return None
    try:
        os.link(made, path, follow_symlinks=False)
    except FileExistsError:
        os.close(held)
        return None
    except OSError:  # a file system without hard links
        os.close(held)
        return _write(path)
    finally:
        os.unlink(made)
    return held


def _write(path: str) -> int | None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    try:
        held = os.open(path, flags, 0o600)  # with O_EXCL a link is not followed, wherever it leads
    except FileExistsError:
        return None
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(held, f"{os.getpid()}\n".encode())
    return held


def _take_away(path: str) -> int | None:
    """Remove the file of a dead process. Returns the owner if a living one's has come into its place meanwhile."""
    if os.path.isdir(path) and not os.path.islink(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    aside = f"{path}.{os.getpid()}"
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return None
    owner = living_owner(aside)
    try:
        if owner:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path, follow_symlinks=False)
            return owner
    finally:
        os.unlink(aside)
    sys.stderr.write(f"Stale pidfile exists - Removing it. ({path})\n")
    return None


def _owner(path: str) -> int | None:
    try:
        found = _PID.fullmatch(read_small(path))
    except OSError:
        return None
    return int(found[1]) if found else None


def living_owner(path: str) -> int | None:
    """Return the process that has the file, or None where that has ended."""
    owner = _owner(path)
    if not owner:
        return None
    if _locked(path):
        return owner
    # A worker of Celery's holds no lock. Its file is older than a process that only got its number afterwards.
    return owner if _alive(owner) and not _started_after(owner, path) else None


def _locked(path: str) -> bool:
    """Say whether some other process holds the lock; ours ends with the process, whatever its children do."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _started_after(pid: int, path: str) -> bool:
    """Say whether a process began after the file was written; False where that cannot be known (not on Linux)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name of the program comes in parentheses, and may hold some. The start is the 22nd field.
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
        return began > os.lstat(path).st_mtime + _SLACK
    except (OSError, ValueError, IndexError, AttributeError):
        return False


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        # In a container that was restarted every process may have the number that it had before.
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def drop_privileges(uid: str | None, gid: str | None, umask: str | None) -> None:
    """Become another user and group, by number or name, and set the mask (octal) for new files."""
    import grp
    import pwd

    if umask is not None:
        if not re.fullmatch(r"(0o?)?[0-7]{1,3}", umask):
            raise Trouble(f"--umask {umask}: it is an octal number of up to three digits, such as 027", EX_CONFIG)
        os.umask(int(umask, 8))
    try:
        group = None if gid is None else int(gid) if gid.isdigit() else grp.getgrnam(gid).gr_gid
        user = None if uid is None else pwd.getpwuid(int(uid)) if uid.isdigit() else pwd.getpwnam(uid)
    except KeyError as error:
        raise Trouble(f"--uid/--gid: {error.args[0]}", EX_CONFIG) from error
    try:
        if group is None and user is not None:
            group = user.pw_gid
        if group is not None:
            os.setgid(group)
        if user is not None:
            os.initgroups(user.pw_name, user.pw_gid if group is None else group)
            os.setuid(user.pw_uid)
            _check_dropped(user.pw_uid)
    except PermissionError as error:
        raise Trouble("--uid and --gid need to be started as root", EX_CONFIG) from error


def _check_dropped(uid: int) -> None:
    """Make sure that there is no way back to root."""
    if not uid:
        return
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise Trouble("--uid: the privileges of root could not be given up for good", EX_CONFIG)
