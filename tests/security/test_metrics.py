"""S39: metrics are few, whatever is sent, and are served to this machine alone unless somebody says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from metrics_support import SHOP, Counted, exporter
from support import environment, worker
from umbel.metrics.sets import SETS
from umbel.testing.servers import free_port


@pytest.mark.parametrize("kind", SETS)
def test_s39_a_hundred_thousand_names_make_no_new_series(kind: str) -> None:
    seen = Counted(kind)
    seen.tell("task-received", name="shop.add", routing_key="celery", exchange="")
    for state in ("started", "succeeded"):
        seen.tell(f"task-{state}", runtime=1.0)
    sizes = []
    for number in range(100_000):
        fields = {"uuid": f"u{number}", "name": f"evil.{number}", "queue": f"q{number}"}
        seen.tell("task-sent", hostname=f"gen{number}@web{number}", **fields)
        seen.tell("task-received", hostname=f"w@h{number % 2000}", **fields)
        seen.tell("task-failed", hostname="w1@box", exception=f"Error{number}()", uuid=f"u{number}")
        if number in (20_000, 99_999):
            sizes.append(seen.series)
    assert sizes[0] == sizes[1] if kind != "celery-exporter" else sizes[1] <= sizes[0] + 200
    # 1,000 workers at most, and 100 classes of errors.
    assert sizes[1] < 40_000


def listeners(port: int) -> set[str]:
    """Return the addresses on which this machine listens at a port, as the kernel writes them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, _, number = line.split()[1].partition(":")
            if int(number, 16) == port and line.split()[3] == "0A":
                found.add(address)
    return found


def test_s39_metrics_are_served_to_this_machine_alone(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    env = environment(BROKER=sqlite_url, UMBEL_RUN_DIR=str(tmp_path / "run"))
    with exporter(tmp_path, env) as address:
        assert listeners(int(address.rpartition(":")[2])) == {"0100007F"}
        with worker("shop", "-l", "info", "--health-port", str(port := free_port()), cwd=tmp_path, env=env):
            assert listeners(port) == {"0100007F"}
