"""Opening files where somebody else may have been first: logs and pid files in folders that everybody can write to."""

from __future__ import annotations

import errno
import os
import stat

_ALWAYS = getattr(os, "O_CLOEXEC", 0)


def open_private(path: str, flags: int) -> int:
    """Open a file that we write; give it to ``open()`` as its ``opener``. A new one is ours alone (mode 600).

    In a folder that everybody can write to, what somebody else has put there is refused with ``PermissionError``: a
    link to a file of ours, a pipe, or a file that he could read along.
    """
    if os.name != "posix" or not _open_to_all(os.path.dirname(os.path.abspath(path))):
        return os.open(path, flags | _ALWAYS, 0o600)
    try:
        link = stat.S_ISLNK(os.lstat(path).st_mode)
        _refuse_strangers(path, os.lstat(path))
    except FileNotFoundError:
        link = False
    # A link of our own cannot be replaced by others, in a folder with the sticky bit; one that was not there a moment
    # ago can only be somebody else's.
    descriptor = os.open(path, flags | _ALWAYS | (0 if link else os.O_NOFOLLOW), 0o600)
    try:
        _refuse_strangers(path, os.fstat(descriptor))
    except PermissionError:
        os.close(descriptor)
        raise
    return descriptor


def _open_to_all(folder: str) -> bool:
    try:
        return bool(os.stat(folder).st_mode & stat.S_IWOTH)
    except OSError:
        return False  # opening the file will say what is wrong


def _refuse_strangers(path: str, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EPERM, "somebody else's file, in a folder that everybody can write to", path)
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        # A second name for a file of ours, made by whoever wants us to write into it.
        raise PermissionError(errno.EPERM, "a hard link, in a folder that everybody can write to", path)


def read_small(path: str, limit: int = 4096) -> bytes:
    """Return the start of a regular file; ``OSError`` for anything else, without waiting for a pipe or a device."""
    flags = os.O_RDONLY | _ALWAYS | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return os.read(descriptor, limit)
    finally:
        os.close(descriptor)
