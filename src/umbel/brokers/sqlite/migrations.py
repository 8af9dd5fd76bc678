"""How a file of an older Umbel becomes one of this."""

from __future__ import annotations

from importlib import resources
from typing import Final

SCHEMA: Final = 2

#: What leads from the schema before to this one. Only adds, so that a process of the older Umbel may go on.
_STEPS: Final[dict[int, str]] = {
    2: """
ALTER TABLE messages ADD COLUMN log TEXT;
ALTER TABLE dead ADD COLUMN traceback TEXT NOT NULL DEFAULT '';
""",
}


def script(version: int) -> str:
    """Return the statements that lead from that schema to the newest; from 0 they make everything."""
    if not version:
        return resources.files("umbel.brokers.sqlite").joinpath("schema.sql").read_text("utf-8")
    return "\n".join(_STEPS[step] for step in range(version + 1, SCHEMA + 1))
