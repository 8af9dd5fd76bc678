"""Whether this process runs programs that say ``import celery``; :mod:`umbel.celery` sets it."""

from __future__ import annotations

#: True once the import alias is installed. Unknown settings are then warnings: a Celery project may hold its own.
active: bool = False
