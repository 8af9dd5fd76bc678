"""The file system under a database: what cannot keep locks and shared memory is refused."""

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
