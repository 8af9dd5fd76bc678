"""Running in the background: detaching from the terminal, the pid file, and giving up privileges."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from umbel.cli.errors import EX_CANT_CREATE, EX_CONFIG, Trouble

_STARTED = b"1"
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
    for _ in range(2):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            owner = _owner(path)
            if owner and _alive(owner):
                raise Trouble(
                    f"Pidfile ({path}) already exists. Seems we're already running? (pid: {owner})", EX_CANT_CREATE
                ) from None
            sys.stderr.write(f"Stale pidfile exists - Removing it. ({path})\n")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            continue
        except OSError as error:
            raise Trouble(f"--pidfile {path}: {error.strerror}", EX_CANT_CREATE) from error
        with os.fdopen(fd, "w") as file:
            file.write(f"{os.getpid()}\n")
        return
    raise Trouble(f"--pidfile {path}: another process creates it at the same time", EX_CANT_CREATE)


def _owner(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read().strip() or 0)
    except (OSError, ValueError):
        return None


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
    except PermissionError as error:
        raise Trouble("--uid and --gid need to be started as root", EX_CONFIG) from error
