"""``celery.app.defaults``: the settings and their defaults, as Celery's table has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from umbel.setting_names import canonical
from umbel.setting_rows import ROWS


class Option(NamedTuple):
    """One setting: its default and its type's name."""

    default: Any = None
    type: str = "string"


class Namespace(dict[str, Any]):
    """The settings that begin with the same word."""


class searchresult(NamedTuple):
    """Where a setting was found."""

    namespace: str
    key: str
    type: Any


#: Every setting with its default.
DEFAULTS: dict[str, Any] = {name: row.default for name, row in ROWS.items()}
SETTING_KEYS = set(DEFAULTS)


def _namespaces() -> Namespace:
    found = Namespace()
    for name, row in ROWS.items():
        first, _, rest = name.partition("_")
        home = found if not rest or first in ("accept", "enable") else found.setdefault(first, Namespace())
        home[name if home is found else rest] = Option(row.default, str(row.type))
    return found


NAMESPACES = _namespaces()


def flatten(d: Any, root: str = "", keyfilter: Any = None) -> Iterator[tuple[str, Any]]:
    """Yield every setting of a table with its full name."""
    for key, value in d.items():
        if isinstance(value, Namespace):
            yield from flatten(value, f"{root}{key}_")
        else:
            yield root + key, value


def find(name: str, namespace: str = "celery") -> searchresult:
    """Return where a setting of this name is. Raises ``KeyError`` for an unknown one."""
    setting = canonical(name.lower()) or canonical(name)
    if setting is None:
        raise KeyError(name)
    first, _, rest = setting.partition("_")
    return searchresult(first, rest, Option(ROWS[setting].default, str(ROWS[setting].type)))
