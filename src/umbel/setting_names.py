"""Which setting a name means: new and old spellings, prefixes, and what to say when a name means none."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable

from umbel.exceptions import ImproperlyConfigured
from umbel.setting_rows import OLD_NAMES, ROWS

#: A lowercase name with one of these is a setting or a mistake; other names belong to whoever wrote them.
PREFIXES = ("task_", "worker_", "broker_", "result_", "beat_")

_GIVEN_PREFIXES = ("CELERY_", "UMBEL_")
_BARE_UPPER = ("ACCEPT_CONTENT", "ENABLE_UTC", *(prefix.upper() for prefix in PREFIXES))
_OLD_STYLE = ("CELERY_", "CELERYD_", "CELERYBEAT_", "BROKER_", "UMBEL_")
# Settings of well-known packages for Celery, which use its prefixes.
_NEIGHBOURS = frozenset({"beat_dburi", "beat_schema"})


@functools.lru_cache(maxsize=4096)
def canonical(name: str, namespace: str | None = None) -> str | None:
    """Return the setting that a name means, or None for a key that is not ours.

    Known are the name itself, its old name, both with ``CELERY_`` or ``UMBEL_`` before them, and the name with the
    namespace before it. Without a namespace, an uppercase name that starts as only our settings do is one too;
    ``REDIS_HOST`` or ``TIMEZONE`` are not, because a whole Flask configuration may be given.

    >>> canonical("BROKER_URL"), canonical("CELERY_BROKER_URL"), canonical("CELERYD_CONCURRENCY")
    ('broker_url', 'broker_url', 'worker_concurrency')
    >>> canonical("SHOP_TASK_SERIALIZER", "SHOP"), canonical("SECRET_KEY")
    ('task_serializer', None)
    """
    if name in ROWS:
        return name
    rest = strip_namespace(name, namespace)
    if rest is not None and rest.lower() in ROWS:
        return rest.lower()
    if name in OLD_NAMES:
        return OLD_NAMES[name]
    if not (name.isupper() or name.islower()):
        return None
    for prefix in _GIVEN_PREFIXES:
        if name.upper().startswith(prefix):
            rest = name[len(prefix) :]
            return rest.lower() if rest.lower() in ROWS else OLD_NAMES.get(rest)
    if namespace is None and name.isupper() and name.startswith(_BARE_UPPER):
        return name.lower() if name.lower() in ROWS else OLD_NAMES.get(f"CELERY_{name}")
    return None


def strip_namespace(name: str, namespace: str | None) -> str | None:
    """Return what follows the namespace in a name, or None where the name does not start with it."""
    if not namespace:
        return None
    prefix = namespace.rstrip("_") + "_"
    return name[len(prefix) :] if name.upper().startswith(prefix.upper()) and len(name) > len(prefix) else None


def mistake(name: str, namespace: str | None = None) -> str | None:
    """Return what to do about an unknown name that was surely meant to be a setting, or None if it is not ours."""
    rest = strip_namespace(name, namespace)
    bare = rest.lower() if rest is not None else name.removeprefix("celery_")
    if rest is not None or name.islower():
        if bare in _NEIGHBOURS:
            return None
        near = _nearest(bare, tuple(ROWS))
        if near is not None:
            return f"did you mean {near!r}?"
        if bare.startswith(PREFIXES):
            close = difflib.get_close_matches(bare, ROWS, n=1, cutoff=0)
            prefix = bare.partition("_")[0]
            return f"nearest: {close[0]!r}; a key of your own must not start with '{prefix}_'"
        return None
    if name.isupper() and name.startswith(_OLD_STYLE):
        near = _nearest(name, (*OLD_NAMES, *(f"CELERY_{known.upper()}" for known in ROWS)))
        return None if near is None else f"did you mean {near!r}?"
    return None


def check_unmixed(names: Iterable[str], where: str) -> None:
    """Refuse a source in which some names are new and some are old, as Celery does, and name those to change.

    A setting given under both names is fine, and so is an old name that is only the new one in uppercase and may
    as well belong to somebody else.
    """
    have = set(names)
    new = {name for name in have if name in ROWS and ROWS[name].old_name}
    old = {name for name in have if name in OLD_NAMES and name.startswith(_OLD_STYLE) and OLD_NAMES[name] not in have}
    new -= {OLD_NAMES[name] for name in have if name in OLD_NAMES}
    if not new or not old:
        return
    if len(old) > len(new):
        renames, style = {name: ROWS[name].old_name for name in new}, "old"
    else:
        renames, style = {name: OLD_NAMES[name] for name in old}, "new"
    lines = "\n".join(f"{name:<36} -> {renames[name]}" for name in sorted(renames))
    raise ImproperlyConfigured(
        f"Cannot mix new and old setting names in {where}; rename the following to the {style} format:\n\n{lines}\n"
    )


def _nearest(name: str, known: Iterable[str]) -> str | None:
    # In a short name two edits make another word.
    allowed = 2 if len(name) >= 8 else 1
    best = min(((_edits(name, other, allowed), other) for other in known), default=(allowed + 1, ""))
    return best[1] if best[0] <= allowed else None


def _edits(one: str, other: str, limit: int) -> int:
    """Return how many characters must be changed, added, dropped or swapped; ``limit + 1`` for more than that."""
    if abs(len(one) - len(other)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, right in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if last and j > 1 and left == other[j - 2] and one[i - 2] == right:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return min(row[-1], limit + 1)
