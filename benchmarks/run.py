"""Compare Umbel with its peers on one private Redis, in one run; print a table and write it as Markdown.

    python benchmarks/run.py [--only umbel,celery] [--quick]

Read the ratios, not the figures: this kind of machine changes its speed by a factor of two between runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def tree(pid: int) -> list[int]:
    """Return the process and all its descendants."""
    found = [pid]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            if parent == pid:
                found += tree(int(entry.name))
    return found


def memory(pid: int) -> tuple[float, float]:
    """Return (PSS, RSS) of the process tree in MiB."""
    pss = rss = 0
    for each in tree(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("Pss:"):
                pss += int(line.split()[1])
            elif line.startswith("Rss:"):
                rss += int(line.split()[1])
    return pss / 1024, rss / 1024


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


class Bench:
    """Runs one peer after the other and keeps what was measured."""

    def __init__(self, url: str, *, quick: bool) -> None:
        self.url = url
        self.scale = 0.2 if quick else 1.0
        self.figures: dict[str, dict[str, float]] = {}
        os.environ["BENCH_URL"] = url

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, cwd=HERE, env={**os.environ, "PYTHONPATH": str(HERE)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)

    def peer(self, kind: type) -> None:
        from peers import poll

        peer = kind(self.url)
        figures = self.figures[peer.name] = {}
        peer.redis.flushall()
        count = int(peer.enqueue * self.scale)
        started = time.perf_counter()
        for _ in range(count):
            peer.send()
        figures["enqueue /s"] = count / (time.perf_counter() - started)
        peer.redis.flushall()
        total = int(peer.drain * self.scale)
        started = time.perf_counter()
        peer.fill(total)
        if peer.name == "umbel":
            figures["bulk /s"] = total / (time.perf_counter() - started)
        begun = time.perf_counter()
        process = self.start(peer.worker(2))
        try:
            if not poll(lambda: peer.left() < total, 30, 0.001):
                print(f"{peer.name}: the worker took nothing within 30 s")
                return
            first, left = time.perf_counter(), peer.left()
            figures["ready s"] = first - begun
            if not poll(lambda: peer.left() == 0, 60, 0.002):
                print(f"{peer.name}: not drained within 60 s")
            figures["drain /s"] = (left - peer.left()) / (time.perf_counter() - first)
            time.sleep(0.5)
            figures["PSS MiB"], figures["RSS MiB"] = memory(process.pid)
            self.round_trips(peer, figures)
        finally:
            self.stop(process)

    def round_trips(self, peer: object, figures: dict[str, float]) -> None:
        once = peer.round_trip()  # type: ignore[attr-defined]
        if once is None:
            return
        for _ in range(20):
            once()
        times = []
        for _ in range(int(400 * self.scale)):
            started = time.perf_counter()
            once()
            times.append((time.perf_counter() - started) * 1000)
        figures["round trip p50 ms"] = statistics.median(times)
        figures["round trip p99 ms"] = percentile(times, 0.99)

    def umbel_load(self) -> None:
        """Keep two processes busy with 5 ms tasks, and with a mix of 1 ms and 2 s; say how busy they were."""
        from peers import UmbelPeer, poll

        peer = UmbelPeer(self.url)
        figures = self.figures["umbel"]
        for title, seconds in (("5 ms", [0.005] * int(1500 * self.scale)), ("1 ms / 2 s", ([0.001] * 150 + [2.0]) * 4)):
            peer.redis.flushall()
            process = self.start(peer.worker(2))
            try:
                peer.app.noop.delay().get(timeout=20)
                started = time.perf_counter()
                results = peer.app.app.send_many([(peer.app.work, (each,), {}) for each in seconds])
                for result in results:
                    result.get(timeout=60)
                elapsed = time.perf_counter() - started
                figures[f"busy at {title}"] = sum(seconds) / 2 / elapsed
            finally:
                self.stop(process)
            poll(lambda: peer.left() == 0, 1)

    def umbel_asyncio(self) -> None:
        """2,000 coroutines that sleep a second, a thousand at a time, in one process."""
        from peers import UmbelPeer

        peer = UmbelPeer(self.url)
        peer.redis.flushall()
        command = [*peer.worker(1000), "-P", "asyncio"]
        process = self.start(command)
        try:
            peer.app.nap.delay(0).get(timeout=20)
            started = time.perf_counter()
            for result in peer.app.app.send_many([(peer.app.nap, (1,), {})] * 2000):
                result.get(timeout=60)
            self.figures["umbel"]["2,000 sleeps s"] = time.perf_counter() - started
        finally:
            self.stop(process)


def sqlite(figures: dict[str, float], scale: float) -> None:
    """Drain and enqueue on the default store, in a process of its own so that nothing is shared."""
    code = f"""
import sys, time, subprocess, signal
sys.path.insert(0, {str(HERE)!r})
from apps.umbel_app import app, noop
n = int(3000 * {scale})
t = time.perf_counter()
for _ in range(n): noop.delay()
print("sqlite enqueue /s", n / (time.perf_counter() - t))
n = int(30000 * {scale})
app.send_many([(noop, (), {{}})] * n)
total = app.broker.size("celery")
command = [sys.executable, "-m", "umbel", "-A", "apps.umbel_app:app", "worker", "-c", "2", "-l", "warning"]
p = subprocess.Popen(command, cwd={str(HERE)!r}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
deadline = time.perf_counter() + 60
while (left := app.broker.size("celery")) >= total and time.perf_counter() < deadline: time.sleep(0.005)
t = time.perf_counter()
while (now := app.broker.size("celery")) and time.perf_counter() < deadline: time.sleep(0.01)
print("sqlite drain /s", (left - now) / (time.perf_counter() - t))
p.send_signal(signal.SIGTERM); p.wait(30)
"""
    with tempfile.TemporaryDirectory() as home:
        env = {k: v for k, v in os.environ.items() if k != "BENCH_URL"} | {"UMBEL_HOME": home}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        name, _, value = line.rpartition(" ")
        figures[name] = float(value)
    if done.returncode:
        print(done.stderr[-2000:])


def bare_loop(url: str) -> dict[str, float]:
    """The limit: reserve and settle in batches of 64 with a result each, and nothing else; and a plain LPUSH."""
    import redis
    from apps.umbel_app import app, noop

    from umbel.interfaces import ResultRecord, Settlement
    from umbel.message import decode_call, decode_envelope

    client = redis.Redis.from_url(url)
    client.flushall()
    count = 30_000
    app.send_many([(noop, (), {})] * count)
    payload = client.lindex("celery", 0)
    app.broker.bind_results(app.backend.location())
    leases = app.broker.leases()
    consumer = app.broker.consumer(leases.register("bare"), ["celery"])
    done = 0
    started = time.perf_counter()
    deliveries = consumer.reserve(64)
    while deliveries:
        batch = []
        for delivery in deliveries:
            call = decode_call(decode_envelope(delivery.raw), ("json",))
            record = ResultRecord(task_id=call.id, state="SUCCESS", payload=b'{"status": "SUCCESS"}', expires=86400.0)
            batch.append(Settlement(delivery=delivery, result=record))
        done += len(batch)
        deliveries = consumer.settle(batch, reserve=64).deliveries
    drained = done / (time.perf_counter() - started)
    consumer.close()
    leases.close()
    started = time.perf_counter()
    for _ in range(5000):
        client.lpush("bare", payload)
    pushed = 5000 / (time.perf_counter() - started)
    client.flushall()
    return {"drain /s": drained, "enqueue /s": pushed}


def table(figures: dict[str, dict[str, float]]) -> str:
    """Return the figures as Markdown, one column a system, with ratios to Umbel's figure."""
    rows = []
    for each in figures.values():
        rows += [row for row in each if row not in rows]
    names = list(figures)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        ours = figures.get("umbel", {}).get(row)
        cells = []
        for name in names:
            value = figures[name].get(row)
            if value is None:
                cells.append("–")
                continue
            shown = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
            cells.append(shown if name == "umbel" or not ours else f"{shown} ({ours / value:.2f}×)")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of systems, separated by commas")
    parser.add_argument("--quick", action="store_true", help="a fifth of the work")
    chosen = parser.parse_args()
    from peers import PEERS

    from umbel.testing.servers import RedisServer

    server = RedisServer()
    server.start()
    try:
        bench = Bench(server.url, quick=chosen.quick)
        for kind in PEERS:
            if chosen.only and kind.name not in chosen.only.split(","):
                continue
            print(f"… {kind.name}", file=sys.stderr)
            bench.peer(kind)
        if "umbel" in bench.figures:
            bench.umbel_load()
            bench.umbel_asyncio()
            bench.figures["bare loop (1 process)"] = bare_loop(server.url)
    finally:
        server.stop()
    if "umbel" in bench.figures:
        sqlite(bench.figures["umbel"], bench.scale)
    text = table(bench.figures)
    print(text)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    header = f"Python {platform.python_version()}, {os.cpu_count()} cores. In brackets: Umbel's figure over theirs.\n\n"
    (results / f"{time.strftime('%Y-%m-%d')}.md").write_text(header + text + "\n")


if __name__ == "__main__":
    main()
