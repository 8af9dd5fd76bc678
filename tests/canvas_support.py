"""Runs the table of canvases with one client and one or more workers, and says what became of each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from canvas_cases import CASES, CLIENT, TASKS
from support import environment, run, worker

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CLASSES = {"celery": "Celery", "umbel": "Umbel"}


def write(folder: Path, module: str, conf: str = "") -> Path:
    """Write the tasks as a program for the module, ``celery`` or ``umbel``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peer_tasks.py").write_text(TASKS.format(module=module, cls=_CLASSES[module], conf=conf))
    (folder / "client.py").write_text(CLIENT)
    return folder


def play(
    tmp: Path,
    url: str,
    *,
    client: str = "umbel",
    workers: Sequence[str] = ("umbel",),
    options: Sequence[str] = ("-c", "2"),
    cases: Mapping[str, str] = CASES,
    conf: str = "",
    env: Mapping[str, str] | None = None,
    settle: float = 0.5,
    timeout: float = 240.0,
) -> dict[str, Any]:
    """Have a client send every case to these workers; return the outcomes by name, with every id as ``ID``."""
    log = tmp / "log"
    around = environment(URL=url, LOG=str(log), C_FORCE_ROOT="1", **(env or {}))
    home = write(tmp / f"client-{client}", client, conf)
    (tmp / "cases.json").write_text(json.dumps(cases))
    with ExitStack() as stack:
        for number, module in enumerate(workers):
            place = write(tmp / f"worker-{number}-{module}", module, conf)
            stack.enter_context(
                worker("peer_tasks", "-l", "info", *options, cwd=place, env=around, celery=module == "celery")
            )
        code = f"import sys; sys.argv[1:] = [{str(tmp / 'cases.json')!r}, '{settle}']; exec(open('client.py').read())"
        said = run(code, cwd=home, env=around, timeout=timeout)
    found: dict[str, Any] = json.loads(_ID.sub("ID", said.splitlines()[-1]))
    return found
