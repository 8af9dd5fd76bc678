"""A project to be measured, the exporter beside it, and a private Prometheus."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from support import WorkerProcess, eventually
from umbel.metrics.labels import Labels
from umbel.metrics.sets import SETS, MetricSet
from umbel.metrics.tally import Tally
from umbel.testing.servers import free_port, require

ROOT = Path(__file__).resolve().parent.parent

SHOP = """
import os, time
from umbel import Umbel
app = Umbel(
    "shop",
    broker=os.environ["BROKER"],
    backend=os.environ["BROKER"],
    task_send_sent_event=True,
    task_queues={"celery": {}, "mail": {"exchange": "post", "routing_key": "mail"}},
    task_routes={"shop.mail": {"queue": "mail"}},
    task_unknown_backoff=(0.1,),
    beat_schedule={"every-second": {"task": "shop.mail", "schedule": 1.0}},
)

@app.task
def add(x, y): return x + y

@app.task
def nap(seconds): time.sleep(seconds)

@app.task
def mail(): pass

@app.task
def told(request, error, traceback): pass

@app.task
def bad(): raise ValueError("no")

@app.task(bind=True, max_retries=2)
def flaky(self):
    if self.request.retries < 1:
        raise self.retry(countdown=0.1, exc=ValueError("again"))
"""


class Counted:
    """A tally with one set of names, and what it counts."""

    def __init__(self, kind: str = "umbel") -> None:
        self.registry = CollectorRegistry()
        self.names: MetricSet = SETS[kind](self.registry)
        routes = {("post", "m"): "mail", ("", "celery"): "celery"}
        self.tally = Tally(
            Labels(["shop.add"], limit=2),
            Labels(["celery", "mail"], limit=0),
            routes,
            [self.names.told],
            [self.names.forget],
        )

    def tell(self, type: str, at: float = 0.0, **fields: Any) -> None:
        self.tally.event({"type": type, "timestamp": at, "hostname": "w1@box", "uuid": "1", **fields})

    def value(self, metric: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(metric, labels)

    @property
    def series(self) -> int:
        return sum(len(metric.samples) for metric in self.registry.collect())


def get(url: str, accept: str = "") -> tuple[int, str]:
    """Return the status and the text of a page; 0 where nobody answers."""
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        return 0, str(error)


def values(text: str) -> dict[str, float]:
    """Return the samples of a page by name and labels, as they are written."""
    return {
        series: float(value)
        for series, _, value in (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    }


@contextmanager
def exporter(cwd: Path, env: Mapping[str, str], *options: str, target: str | None = "shop") -> Iterator[str]:
    """Run ``umbel metrics serve`` while the block runs, and lend its address."""
    app = ["-A", target] if target else []
    command = [sys.executable, "-m", "umbel", *app, "metrics", "serve", "--port", "0", "--every", "1", *options]
    running = WorkerProcess(command, cwd, env)
    try:
        running.expect("/metrics")
        (address,) = re.findall(r"^serving (http://127\.0\.0\.1:\d+)/metrics$", running.output, re.MULTILINE)
        eventually(lambda: get(f"{address}/readyz")[0] == 200)
        yield address
    except BaseException:
        running.stop(signal.SIGKILL)
        print(running.output)
        raise
    assert running.stop() == 0, running.output
    assert "Traceback" not in running.output


class Prometheus:
    """A Prometheus that scrapes these addresses every second; ``with`` starts and stops it."""

    def __init__(self, folder: Path, jobs: Mapping[str, str], rules: Path) -> None:
        self.port = free_port()
        self._folder = folder
        scrapes = [{"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in jobs.items()]
        # YAML is JSON too.
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": scrapes,
        }
        (folder / "prometheus.json").write_text(json.dumps(config))

    def __enter__(self) -> Prometheus:
        binary = require("prometheus", "apt-get install prometheus")
        self._log = (self._folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                binary,
                f"--config.file={self._folder / 'prometheus.json'}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=warn",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        eventually(lambda: get(f"http://127.0.0.1:{self.port}/-/ready")[0] == 200)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._log.close()

    def ask(self, path: str, **query: str) -> Any:
        """Return the data of one answer of the API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        status, text = get(url)
        assert status == 200, text
        return json.loads(text)["data"]

    def query(self, expression: str) -> list[Any]:
        """Return the samples of an expression now."""
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found


def promtool(*words: str, given: str | None = None) -> str:
    """Run promtool and return what it printed; it must find nothing wrong."""
    binary = require("promtool", "apt-get install prometheus")
    done = subprocess.run([binary, *words], input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def board_queries() -> list[tuple[str, str]]:
    """Return the titles and queries of the board, its variables filled in as Grafana does for "All"."""
    board = json.loads((ROOT / "deploy/grafana/umbel.json").read_text())
    found = []
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m")
            for variable in board["templating"]["list"]:
                text = text.replace(f"${variable['name']}", ".*")
            assert "$" not in text, text
            found.append((panel["title"], text))
    return found
