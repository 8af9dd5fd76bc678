"""Names of workers: ``name@host``, and the abbreviations in ``--hostname`` and ``--logfile``.

========  ==========================================================
``%h``    the host name with its domain
``%n``    the name alone
``%d``    the domain alone
``%p``    the full node name (where there is one)
``%i``    the number of this worker process, ``0`` in the main process
``%I``    the same with a dash in front, nothing in the main process
========  ==========================================================
"""

from __future__ import annotations

import functools
import os
import socket

from umbel.utils.text import expand

NODENAME_SEP = "@"
NODENAME_DEFAULT = "celery"

_index = 0


@functools.cache
def gethostname() -> str:
    """Return this machine's name, asked once per process."""
    return socket.gethostname()


def nodename(name: str, hostname: str) -> str:
    """Join a name and a host."""
    return f"{name}{NODENAME_SEP}{hostname}"


def anon_nodename(hostname: str | None = None, prefix: str = "gen") -> str:
    """Return the name of a process that is no worker, as task messages carry it in ``origin``."""
    return nodename(f"{prefix}{os.getpid()}", hostname or gethostname())


def nodesplit(name: str) -> tuple[str | None, str]:
    """Return name and host; the name is None where there is only a host.

    >>> nodesplit("w1@example.com")
    ('w1', 'example.com')
    """
    first, separator, rest = name.partition(NODENAME_SEP)
    return (first, rest) if separator else (None, first)


def default_nodename(hostname: str | None, default_name: str = NODENAME_DEFAULT) -> str:
    """Fill in whichever half of the node name is missing."""
    name, host = nodesplit(hostname or "")
    return nodename(name or default_name, host or gethostname())


def set_process_index(index: int) -> None:
    """Say which worker process this is, from 1; 0 is the main process."""
    global _index
    _index = index


def process_index() -> int:
    """Return which worker process this is, from 1; 0 is the main process."""
    return _index


def node_format(template: str, name: str) -> str:
    """Expand the abbreviations for the node ``name``.

    >>> node_format("%n-%d.log", "w1@box.example.com")
    'w1-example.com.log'
    """
    short, host = nodesplit(name)
    return _format(template, host, short or NODENAME_DEFAULT, name)


def host_format(template: str, host: str | None = None, name: str | None = None) -> str:
    """Expand the abbreviations for a host; ``%n`` is its first label unless a name is given."""
    return _format(template, host, name, None)


def _format(template: str, host: str | None, name: str | None, full: str | None) -> str:
    host = host or gethostname()
    label, _, domain = host.partition(".")
    values = {
        "h": host,
        "n": name or label,
        "d": domain,
        "i": str(_index),
        "I": f"-{_index}" if _index else "",
    }
    if full is not None:
        values["p"] = full
    return expand(template, values)
