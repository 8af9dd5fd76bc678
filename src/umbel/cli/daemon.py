"""Running in the background: detaching from the terminal, the pid file, and giving up privileges."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator

from umbel.cli.errors import EX_CANT_CREATE, EX_CONFIG, Trouble
from umbel.utils.files import read_small

_STARTED = b"1"
# No sign: to the kernel a negative number is a whole group of processes.
_PID = re.compile(rb"\s*(\d{1,9})\s*")
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
def pidfile(path: str | None) -> Iterator[None]:
    """Keep this process's id in a file while the block runs.

    Ends the command with exit code 73 if a living process has the file; one left by a dead process is replaced.
    """
    if not path:
        yield
        return
    path = os.path.abspath(path)
    _create(path)
    try:
        yield
    finally:
        if _owner(path) == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(path)


def _create(path: str) -> None:
    for _ in range(3):
        try:
            if _place(path):
                return
            owner = _owner(path)
            if not owner or not _alive(owner):
                owner = _take_away(path)
        except OSError as error:
            raise Trouble(f"--pidfile {path}: {error.strerror}", EX_CANT_CREATE) from error
        if owner:
            raise Trouble(
                f"Pidfile ({path}) already exists. Seems we're already running? (pid: {owner})", EX_CANT_CREATE
            )
    raise Trouble(f"--pidfile {path}: another process creates it at the same time", EX_CANT_CREATE)


def _place(path: str) -> bool:
    """Make the file with our id in it; in one step, since one that is seen empty would be taken for a stale one."""
    made = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(made)
    _write(made)
    try:
        os.link(made, path, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        return _write(path)
    finally:
        os.unlink(made)
    return True


def _write(path: str) -> bool:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    try:
        fd = os.open(path, flags, 0o600)  # with O_EXCL a link is not followed, wherever it leads
    except FileExistsError:
        return False
    with os.fdopen(fd, "w") as file:
        file.write(f"{os.getpid()}\n")
    return True


def _take_away(path: str) -> int | None:
    """Remove the file of a dead process. Returns the owner if a living one's has come into its place meanwhile."""
    if os.path.isdir(path) and not os.path.islink(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    aside = f"{path}.{os.getpid()}"
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return None
    owner = _owner(aside)
    try:
        if owner and _alive(owner):
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
