"""How a file of an older Umbel becomes one of this."""

from __future__ import annotations

from importlib import resources
from typing import Final

SCHEMA: Final = 4

#: What leads from the schema before to this one. Only adds, so that what a process of the older Umbel does on the
#: connections that it has stays right; it opens no others.
_STEPS: Final[dict[int, str]] = {
    2: """
ALTER TABLE messages ADD COLUMN log TEXT;
ALTER TABLE dead ADD COLUMN traceback TEXT NOT NULL DEFAULT '';
""",
    3: """
ALTER TABLE messages ADD COLUMN due INTEGER;
""",
    4: """
CREATE INDEX pairs_expiring ON pairs (expires) WHERE expires IS NOT NULL;
""",
}


def script(version: int) -> str:
    """Return the statements that lead from that schema to the newest; from 0 they make everything."""
    if not version:
        return resources.files("umbel.brokers.sqlite").joinpath("schema.sql").read_text("utf-8")
    return "\n".join(_STEPS[step] for step in range(version + 1, SCHEMA + 1))
