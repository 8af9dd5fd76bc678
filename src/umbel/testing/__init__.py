"""What tests of a project, and of a third party's driver, are made with.

``FakeClock`` moves time by hand. :class:`umbel.testing.brokers.BrokerContract` and
:class:`umbel.testing.backends.BackendContract` are the conformance suites; they need pytest.
:class:`umbel.testing.servers.RedisServer` runs a private server.
"""

from __future__ import annotations

import sys

from umbel.testing.clock import FakeClock

__all__ = ["FakeClock"]

_PARTS = ("base", "queues", "settling", "dead", "leases", "results", "shared", "many")

if "pytest" in sys.modules:
    # The suites' assertions then say what they compared, in a third party's project too.
    import pytest

    pytest.register_assert_rewrite("umbel.testing.backends", *(f"umbel.testing.broker_{part}" for part in _PARTS))
