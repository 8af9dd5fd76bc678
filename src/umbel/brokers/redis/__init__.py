"""The Redis broker: Celery's queue lists, with every move of a message in one script."""

from __future__ import annotations

from umbel.brokers.redis.broker import RedisBroker

__all__ = ["RedisBroker"]
