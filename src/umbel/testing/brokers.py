"""The conformance suite that every broker must pass, a third party's too.

Write a class in a test file of your own, and pytest finds the tests in it::

    class TestMine(BrokerContract):
        driver = "mypackage.broker:MyBroker"          # called as MyBroker(url, options={...}, clock=...)
        backend_driver = "mypackage.results:MyBackend"  # only if settle() can write results; else leave it out

        @pytest.fixture(autouse=True)
        def _url(self, tmp_path):
            self.url = f"mine:///{tmp_path}/store"    # an empty store for each test

Tests are skipped by what ``features`` says and by nothing else: a driver that cannot do something says so there.

The clock. All policy times (due moments, leases of ``features.lease == "clock"``) must be taken from the ``clock`` that
the driver is given. A driver of a server with a clock of its own uses the server's time when it is given
:data:`umbel.clock.SYSTEM_CLOCK` and ``clock.time()`` with any other, so that these tests can move time. Mere times to
live of keys (repeated publishes, unique keys, the store) may be left to the server. Waits are real, except in a driver
that lives in one process and can wait on the clock itself. Drivers whose leases end with a process or a connection are
tested by killing a process.

Options that the suite passes: ``max_deliveries``, ``redelivery_backoff``, ``publish_dedupe``, ``lease_ttl`` and
``lease_heartbeat``; without them the defaults are 5, (1, 5, 30, 120), 120, 30 and 10.
"""

from __future__ import annotations

from umbel.testing.broker_dead import CrashTests, DeadLetterTests
from umbel.testing.broker_finding import FindTests
from umbel.testing.broker_leases import ReapTests, ReleaseTests
from umbel.testing.broker_many import LifeTests, ProcessTests, ThreadTests
from umbel.testing.broker_queues import QueueTests, ScheduleTests, WaitTests
from umbel.testing.broker_results import ResultTests
from umbel.testing.broker_settling import GateTests, PoisonTests, RepeatTests, SettleTests
from umbel.testing.broker_shared import PubSubTests, StoreTests

__all__ = ["BrokerContract"]


class BrokerContract(
    QueueTests,
    ScheduleTests,
    WaitTests,
    FindTests,
    SettleTests,
    PoisonTests,
    CrashTests,
    DeadLetterTests,
    GateTests,
    RepeatTests,
    ReleaseTests,
    ReapTests,
    ResultTests,
    StoreTests,
    PubSubTests,
    ThreadTests,
    LifeTests,
    ProcessTests,
):
    """All that a broker must do. See the module's docstring for how to use it."""
