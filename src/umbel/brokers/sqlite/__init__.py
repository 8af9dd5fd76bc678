"""The broker in a file: many processes on one machine, no server, and nothing is lost in a crash."""

from __future__ import annotations

from umbel.brokers.sqlite.broker import SqliteBroker

__all__ = ["SqliteBroker"]
