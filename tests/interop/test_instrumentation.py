"""Instrumentation that was written for Celery, loaded through the alias: ``make interop`` runs these.

The programs say ``import celery``; neither celery nor kombu is installed where they run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers

PROGRAMS = Path(__file__).resolve().parent / "programs"


def run_program(name: str, needs: str) -> Any:
    peers.needed(needs)
    done = subprocess.run(
        [sys.executable, "-m", "umbel.celery", str(PROGRAMS / name)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Signal handler" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_sentry_follows_a_trace_into_the_worker_and_reports_its_errors() -> None:
    seen = run_program("with_sentry.py", "sentry_sdk")
    of_checkout = [name for name, _, trace in seen["transactions"] if trace == seen["trace"]]
    assert of_checkout == ["shop.charge", "shop.refuse", "checkout"]
    assert {op for name, op, _ in seen["transactions"] if name.startswith("shop.")} == {"queue.task.celery"}
    assert seen["errors"] == [["shop.refuse", "order 7 is refused", "shop.refuse"]]
    assert seen["published"] == ["shop.charge", "shop.refuse"]


def test_opentelemetry_follows_a_trace_into_the_worker() -> None:
    spans = run_program("with_opentelemetry.py", "opentelemetry.instrumentation.celery")
    assert [(span["name"], span["kind"], span["status"]) for span in spans] == [
        ("apply_async/shop.charge", "PRODUCER", "UNSET"),
        ("run/shop.charge", "CONSUMER", "UNSET"),
        ("apply_async/shop.refuse", "PRODUCER", "UNSET"),
        ("run/shop.refuse", "CONSUMER", "ERROR"),
        ("checkout", "INTERNAL", "UNSET"),
    ]
    assert len({span["trace"] for span in spans}) == 1
    assert spans[0]["attributes"]["messaging.destination_kind"] == "queue"
    assert spans[1]["attributes"]["celery.state"] == "SUCCESS"
    assert spans[3]["events"] == ["order 7 is refused"]
