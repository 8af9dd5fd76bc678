"""The file system under a database: what cannot keep locks and shared memory is refused, and who holds a lock."""

from __future__ import annotations

import os

from umbel.exceptions import ImproperlyConfigured

# fmt: off
_NETWORK = frozenset((
    "9p", "afs", "ceph", "cifs", "fuse.cephfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs",
    "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "smb2", "smb3", "smbfs",
    "vboxsf",
))
# fmt: on


def refuse_network(path: str, kind: str) -> None:
    """Raise ImproperlyConfigured if that kind of file system is a network one."""
    if kind in _NETWORK:
        raise ImproperlyConfigured(
            f"{path} is on a network file system ({kind}), where locks and shared memory do not hold; "
            "use a local disk or a broker with a server (?network=allow overrides this)"
        )


def file_system(folder: str) -> str:
    """Return the kind of file system that holds the folder, or nothing where that cannot be told."""
    try:
        device = os.stat(folder).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                before, _, after = line.partition(" - ")
                if before.split(" ", 3)[2] == wanted:
                    return after.split(" ", 1)[0]
    except (OSError, IndexError, AttributeError):
        pass
    return ""


def free_space(descriptor: int) -> int:
    """Return how many bytes may still be written on the disk of an open file."""
    disk = os.fstatvfs(descriptor)
    return disk.f_bavail * disk.f_frsize


def lock_holders(descriptor: int) -> str:
    """Name the processes that hold a lock on an open file, and say how they are; nothing where that cannot be told."""
    found = os.fstat(descriptor)
    try:
        wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        with open("/proc/locks", encoding="ascii", errors="replace") as locks:
            # Number, kind, mandatory or not, mode, process, file, from, to. Those that wait have an arrow before.
            lines = [line.split() for line in locks]
        pids = dict.fromkeys(int(line[4]) for line in lines if len(line) == 8 and line[5] == wanted)
    except (OSError, AttributeError, ValueError):
        return ""
    # One of another container has no number here.
    return ", ".join(f"pid {pid} ({_state(pid)})" for pid in pids if pid > 0)


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            letter = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "not there any more"
    return {"T": "stopped", "t": "stopped by a debugger", "D": "waiting for the disk"}.get(letter, "running")
