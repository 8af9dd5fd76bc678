"""What a canvas is written as, and the messages that it is sent as: equal to those of the real Celery."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from canvas_forms import FORMS
from support import environment
from umbel.testing.servers import RedisServer

PROGRAM: Final = Path(__file__).resolve().parents[1] / "canvas_forms.py"
#: Where the two differ, and why.
DIFFERENT: Final = {
    "group of groups": "members are numbered through; Celery begins again in the inner group",
    "group empty chain": "members are numbered through; Celery counts what it leaves out",
    "chord group header": "the members of an inner group keep their order; Celery turns it round",
    "chord group header last": "the same",
}


def forms(library: str) -> dict[str, Any]:
    with RedisServer() as server:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), library, server.url],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def both() -> tuple[dict[str, Any], dict[str, Any]]:
    return forms("celery"), forms("umbel")


@pytest.mark.parametrize("name", [name for name in FORMS if name not in DIFFERENT])
def test_it_is_written_and_sent_as_by_celery(name: str, both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    theirs, ours = both
    assert ours[name] == theirs[name]


@pytest.mark.parametrize("name", list(DIFFERENT))
def test_what_differs_differs_in_this_alone(name: str, both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    theirs, ours = both
    assert ours[name]["written"] == theirs[name]["written"]
    assert ours[name]["sizes"] == theirs[name]["sizes"]
    assert unordered(ours[name]) == unordered(theirs[name])
    places = [message["headers"]["group_index"] for message in ours[name]["messages"]]
    assert places == list(range(len(places)))


def unordered(form: dict[str, Any]) -> list[str]:
    """Return the messages without their place in the group and their ids."""
    kept = []
    for message in form["messages"]:
        headers = {
            key: value for key, value in message["headers"].items() if key not in ("group_index", "id", "root_id")
        }
        kept.append(json.dumps([headers, message["body"][:2], message["priority"]], sort_keys=True))
    return sorted(kept)
