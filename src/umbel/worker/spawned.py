"""What runs in a child that :class:`~umbel.worker.spawner.Spawner` started: from a fresh interpreter to the engine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from typing import Any, NoReturn

import msgspec

from umbel.worker.spawner import LENGTH, Bootstrap, Recipe
from umbel.worker.zygote import STOP_SIGNALS, c_library, die_with_parent, end_with, nothing

logger = logging.getLogger("celery.pool")

EX_CONFIG = 78


def main(descriptor: int) -> NoReturn:
    """Be the child at the other end of this socket. Called once, by the command line that the supervisor made."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    (length,) = LENGTH.unpack(_read(sock, LENGTH.size))
    bootstrap = msgspec.json.decode(_read(sock, length), type=Bootstrap)
    die_with_parent(bootstrap.parent, c_library())
    for inherited in msgspec.structs.astuple(bootstrap.descriptors):
        os.set_inheritable(inherited, False)
    end_with(lambda: _run(bootstrap, sock))


def _read(sock: socket.socket, length: int) -> bytes:
    """Return exactly so many bytes: what follows them are commands, which are somebody else's to read."""
    data = b""
    while len(data) < length:
        chunk = sock.recv(length - len(data))
        if not chunk:
            # The supervisor is gone, and nobody is left to tell.
            os._exit(1)
        data += chunk
    return data


def _run(bootstrap: Bootstrap, sock: socket.socket) -> int:
    from umbel.utils.log import set_process_name, setup_logging
    from umbel.worker.process import Start, run_child
    from umbel.worker.shared import Shared
    from umbel.worker.slots import SlotTable

    plan, fds = bootstrap.plan, bootstrap.descriptors
    start = msgspec.json.decode(bootstrap.start, type=Start)
    set_process_name(start.place + 1, plan.process_name(start.number))
    sys.path[:] = bootstrap.recipe.path
    sys.argv[:] = bootstrap.recipe.argv
    # The wall around the user's modules, which may raise anything; the supervisor tries again, less and less often.
    try:
        app = _load(bootstrap.recipe)
        color = bootstrap.recipe.color
        setup_logging(app.conf, plan.loglevel, plan.logfile, color, plan.hostname, as_json=plan.log_json)
    except Exception:
        logging.basicConfig()
        logger.critical("The app %s cannot be imported in a process of its own", bootstrap.recipe.app, exc_info=True)
        return EX_CONFIG
    slots = SlotTable(bootstrap.places, plan.slot_capacity, fds.slots)
    shared = Shared(fds.shared, fds.lock)
    for mapped in (fds.slots, fds.shared):
        os.close(mapped)
    return run_child(app, plan, slots, shared, bytes(bootstrap.start), sock)


def _load(recipe: Recipe) -> Any:
    """Return the app as the command line made it, with all its task modules imported."""
    from umbel.loading import find_app, symbol_by_name

    if recipe.as_celery:
        symbol_by_name("umbel.celery:install")()
    from umbel.app import Umbel

    app = find_app(recipe.app, Umbel)
    if recipe.config:
        app.config_from_object(recipe.config)
    app.set_default()
    if recipe.include:
        app.conf.include = [*app.conf.include, *recipe.include]
    app.import_default_modules()
    app.finalize()
    return app
