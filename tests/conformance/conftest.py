"""Fixtures of tests that are about one driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from rabbitmq_support import Rabbit


@pytest.fixture
def rabbit(rabbitmq_url: str) -> Iterator[Rabbit]:
    with contextlib.ExitStack() as stack:
        yield Rabbit(rabbitmq_url, stack)
