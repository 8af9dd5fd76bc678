"""Whether a server of ours can listen where it was told to."""

from __future__ import annotations

import contextlib
import socket

from umbel.cli.errors import EX_CONFIG, EX_UNAVAILABLE, Trouble


def check_host(host: str) -> None:
    """End the command where no server of this machine can listen on a host: its name or address is not of it."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise Trouble(
            f"--host {host!r}: there is no such name ({said}); 127.0.0.1 is this machine alone, 0.0.0.0 all its "
            "addresses",
            EX_CONFIG,
        ) from error
    reason = ""
    for family, kind, number, _, address in found:
        with contextlib.closing(socket.socket(family, kind, number)) as probe:
            try:
                probe.bind(address)
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                return
    raise Trouble(
        f"--host {host!r}: that is no address of this machine ({reason}); 127.0.0.1 is this machine alone, 0.0.0.0 all "
        "its addresses",
        EX_UNAVAILABLE,
    )
