"""The task that a worker of a test is asked for."""

from __future__ import annotations

from umbel import shared_task


@shared_task(name="celery.ping")
def ping() -> str:
    """Return ``pong``."""
    return "pong"
