"""Compare Umbel with its peers on one private Redis, in one run; print a table and write it as Markdown.

    python benchmarks/run.py [--only umbel,celery] [--quick] [--rabbitmq]

With ``--rabbitmq`` the messages go through a private RabbitMQ, confirmed for all, and the results to Redis;
Umbel, Celery and Dramatiq are compared.

Read the ratios, not the figures: this kind of machine changes its speed by a factor of two between runs.
"""

from __future__ import annotations

import argparse
import compileall
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

    def enqueue(self, peers: list[Any]) -> None:
        """Send one by one, in turns, so that a slow moment of the machine hits everyone; take the median turn."""
        import redis

        client = redis.Redis.from_url(self.url)
        peers[0].redis.flushall()
        peers[0].send()
        payload = b"x" * 900
        senders = {peer.name: (peer.send, peer.enqueue) for peer in peers}
        senders["bare"] = (lambda: client.lpush("bare", payload), 10_000)
        rates: dict[str, list[float]] = {name: [] for name in senders}
        for _ in range(7):
            for name, (send, per_run) in senders.items():
                count = max(20, int(per_run * self.scale / 7))
                started = time.perf_counter()
                for _ in range(count):
                    send()
                rates[name].append(count / (time.perf_counter() - started))
            client.flushall()
        for name, turns in rates.items():
            self.figures.setdefault(name, {})["enqueue /s"] = statistics.median(turns)

    def peer(self, peer: Any) -> None:
        from peers import poll

        figures = self.figures.setdefault(peer.name, {})
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
            if (chord := peer.chord()) is not None:
                self.chord(chord, figures)
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

    def chord(self, call: Callable[[int], Any], figures: dict[str, float]) -> None:
        """A chord of 1,000, from the call to the result of its body; the median of three."""
        size, times = int(1000 * self.scale), []
        for _ in range(3):
            started = time.perf_counter()
            assert call(size) == size
            times.append(time.perf_counter() - started)
        figures[f"chord of {size:,} s"] = statistics.median(times)

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
        from apps.umbel_asyncio_app import app, nap

        from peers import UmbelPeer

        peer = UmbelPeer(self.url)
        peer.redis.flushall()
        command = ["apps.umbel_asyncio_app:app" if word == "apps.umbel_app:app" else word for word in peer.worker(1000)]
        process = self.start([*command, "-P", "asyncio"])
        try:
            nap.delay(0).get(timeout=20)
            started = time.perf_counter()
            for result in app.send_many([(nap, (1,), {})] * 2000):
                result.get(timeout=60)
            self.figures["umbel"]["2,000 sleeps s"] = time.perf_counter() - started
        finally:
            self.stop(process)


SQLITE = """
import os, signal, sqlite3, statistics, subprocess, sys, time
sys.path.insert(0, {here!r})
from apps.umbel_app import app, noop
noop.delay()
bare = sqlite3.connect(os.path.join(os.environ["UMBEL_HOME"], "bare.db"), isolation_level=None)
bare.execute("PRAGMA journal_mode=WAL"); bare.execute("PRAGMA synchronous=FULL")
bare.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, raw BLOB)")
bare.execute("CREATE TABLE results (id TEXT PRIMARY KEY, raw BLOB) WITHOUT ROWID")
insert = "INSERT INTO queue (raw) VALUES (?)"
def put():
    bare.execute("BEGIN IMMEDIATE"); bare.execute(insert, (b"x" * 900,)); bare.execute("COMMIT")
rates = {{"umbel": [], "bare": []}}
turn = int(3000 * {scale} / 7)
for _ in range(7):  # in turns: what a sync costs changes from second to second
    for name, send in (("umbel", noop.delay), ("bare", put)):
        t = time.perf_counter()
        for _ in range(turn): send()
        rates[name].append(turn / (time.perf_counter() - t))
for name, turns in rates.items(): print(name, "sqlite enqueue /s", statistics.median(turns))
n = int(30000 * {scale})
bare.executemany(insert, [(b"x" * 900,)] * 2000)
total, t = bare.execute("SELECT count(*) FROM queue").fetchone()[0], time.perf_counter()
while rows := bare.execute("SELECT id, raw FROM queue ORDER BY id LIMIT 64").fetchall():
    bare.execute("BEGIN IMMEDIATE")
    bare.execute("DELETE FROM queue WHERE id <= ?", (rows[-1][0],))
    bare.executemany("INSERT INTO results VALUES (?, ?)", [(os.urandom(16).hex(), b"y" * 200) for _ in rows])
    bare.execute("COMMIT")
print("bare", "sqlite drain /s", total / (time.perf_counter() - t))
app.send_many([(noop, (), {{}})] * n)
total = app.broker.size("celery")
command = [sys.executable, "-m", "umbel", "-A", "apps.umbel_app:app", "worker", "-c", "2", "-l", "warning"]
p = subprocess.Popen(command, cwd={here!r}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
deadline = time.perf_counter() + 90
while (left := app.broker.size("celery")) >= total and time.perf_counter() < deadline: time.sleep(0.005)
t = time.perf_counter()
while (now := app.broker.size("celery")) and time.perf_counter() < deadline: time.sleep(0.01)
print("umbel", "sqlite drain /s", (left - now) / (time.perf_counter() - t))
p.send_signal(signal.SIGTERM); p.wait(30)
"""


def sqlite(figures: dict[str, dict[str, float]], scale: float) -> None:
    """Drain and enqueue on the default store, in a process of its own so that nothing is shared.

    The bare loop is one table without an owner, a schedule or repeats: what the disk allows.
    """
    code = SQLITE.format(here=str(HERE), scale=scale)
    with tempfile.TemporaryDirectory() as home:
        env = {k: v for k, v in os.environ.items() if k != "BENCH_URL"} | {"UMBEL_HOME": home}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        who, rest = line.split(" ", 1)
        name, _, value = rest.rpartition(" ")
        figures.setdefault(who, {})[name] = float(value)
    if done.returncode:
        print(done.stderr[-2000:])


def bare_loop(url: str) -> dict[str, float]:
    """The limit: reserve and settle in batches of 64 with a result each, and nothing else. One process."""
    import redis
    from apps.umbel_app import app, noop

    from umbel.interfaces import ResultRecord, Settlement
    from umbel.message import decode_call, decode_envelope

    client = redis.Redis.from_url(url)
    client.flushall()
    count = 30_000
    app.send_many([(noop, (), {})] * count)
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
    client.flushall()
    return {"drain /s": drained}


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
    parser.add_argument("--rabbitmq", action="store_true", help="messages on RabbitMQ, results on Redis")
    chosen = parser.parse_args()
    import umbel
    from peers import PEERS
    from umbel.testing.servers import RabbitMQServer, RedisServer

    # pip compiled the peers when it installed them; a tree that is worked on may not have been compiled at all.
    compileall.compile_dir(str(Path(umbel.__file__).parent), quiet=1)
    server, rabbitmq = RedisServer(), None
    server.start()
    try:
        bench = Bench(server.url, quick=chosen.quick)
        wanted = chosen.only.split(",") if chosen.only else [kind.name for kind in PEERS]
        if chosen.rabbitmq:
            rabbitmq = RabbitMQServer()
            rabbitmq.start()
            os.environ["BENCH_BROKER"] = rabbitmq.url
            wanted = [name for name in wanted if name in ("umbel", "celery", "dramatiq")]
        peers = [kind(server.url) for kind in PEERS if kind.name in wanted]
        bench.enqueue(peers)
        for peer in peers:
            print(f"… {peer.name}", file=sys.stderr)
            bench.peer(peer)
        if "umbel" in bench.figures and rabbitmq is None:
            bench.umbel_load()
            bench.umbel_asyncio()
            bench.figures["bare"] |= bare_loop(server.url)
    finally:
        server.stop()
        if rabbitmq is not None:
            rabbitmq.stop()
    if "umbel" in bench.figures and rabbitmq is None:
        sqlite(bench.figures, bench.scale)
    text = table(bench.figures)
    print(text)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    header = f"Python {platform.python_version()}, {os.cpu_count()} cores. In brackets: Umbel's figure over theirs.\n\n"
    suffix = "-rabbitmq" if chosen.rabbitmq else ""
    (results / f"{time.strftime('%Y-%m-%d')}{suffix}.md").write_text(header + text + "\n")


if __name__ == "__main__":
    main()
