"""Every executor keeps the contract."""

from __future__ import annotations

from umbel.interfaces import Executor
from umbel.testing.executors import ExecutorContract
from umbel.worker.executors.asyncio import AsyncioExecutor
from umbel.worker.executors.solo import SoloExecutor
from umbel.worker.executors.threads import ThreadsExecutor


class TestSolo(ExecutorContract):
    def make(self) -> Executor:
        return SoloExecutor()


class TestThreads(ExecutorContract):
    size = 4

    def make(self) -> Executor:
        return ThreadsExecutor(4)


class TestAsyncio(ExecutorContract):
    size = 4

    def make(self) -> Executor:
        return AsyncioExecutor(4)


class TestAsyncioOfManySlots(ExecutorContract):
    size = 20

    def make(self) -> Executor:
        return AsyncioExecutor(20)
