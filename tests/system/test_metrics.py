"""Metrics of real workers, scraped from the exporter and from the workers, also by a real Prometheus."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metrics_support import ROOT, SHOP, Prometheus, board_queries, exporter, get, promtool, values
from support import WorkerProcess, environment, eventually, run, worker
from umbel.testing.servers import free_port

RULES = ROOT / "deploy/prometheus/umbel.rules.yml"
WORK = """
import shop
results = [shop.add.delay(1, n) for n in range(5)] + [shop.mail.delay(), shop.flaky.delay(), shop.bad.delay()]
for result in results:
    result.get(timeout=30, propagate=False)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture(params=["redis", "sqlite"])
def env(request: pytest.FixtureRequest, folder: Path) -> dict[str, str]:
    url = request.getfixturevalue(f"{request.param}_url")
    return environment(BROKER=url, UMBEL_RUN_DIR=str(folder / "run"))


def test_the_exporter_counts_what_a_worker_does(folder: Path, env: dict[str, str]) -> None:
    with (
        exporter(folder, env, "--enable-events") as address,
        worker("shop", "-l", "info", "-c", "2", "-n", "w1@box", cwd=folder, env=env),
    ):
        # Without -E: it tells of its tasks because the exporter asked it to.
        eventually(lambda: 'umbel_queue_consumers{queue="mail"} 1.0' in get(f"{address}/metrics")[1])
        eventually(lambda: 'umbel_worker_up{worker="w1@box"} 1.0' in get(f"{address}/metrics")[1])
        run(WORK, cwd=folder, env=env)
        wanted = {
            'umbel_tasks_total{name="shop.add",queue="celery",state="succeeded"}': 5,
            'umbel_tasks_total{name="shop.add",queue="celery",state="sent"}': 5,
            'umbel_tasks_total{name="shop.mail",queue="mail",state="succeeded"}': 1,
            'umbel_tasks_total{name="shop.flaky",queue="celery",state="retried"}': 1,
            'umbel_tasks_total{name="shop.flaky",queue="celery",state="sent"}': 2,
            'umbel_tasks_total{name="shop.bad",queue="celery",state="failed"}': 1,
            'umbel_task_run_seconds_count{name="shop.flaky",queue="celery"}': 2,
            'umbel_task_wait_seconds_count{name="shop.add",queue="celery"}': 5,
        }

        def counted() -> bool:
            found = values(get(f"{address}/metrics")[1])
            return all(found.get(series) == value for series, value in wanted.items())

        eventually(counted)
        run("import shop; shop.nap.delay(8); shop.add.apply_async((1, 2), countdown=600)", cwd=folder, env=env)
        eventually(lambda: values(get(f"{address}/metrics")[1]).get('umbel_worker_running{worker="w1@box"}') == 1)
        eventually(lambda: values(get(f"{address}/metrics")[1])['umbel_queue_scheduled{queue="celery"}'] == 1)
        assert values(get(f"{address}/metrics")[1])['umbel_queue_unacked{queue="celery"}'] == 1


def test_a_backlog_is_seen_and_scaled_for(folder: Path, env: dict[str, str]) -> None:
    with exporter(folder, env) as address:
        code = "import shop\nfor _ in range(120): shop.mail.delay()"
        run(code, cwd=folder, env=env)
        eventually(lambda: 'umbel_queue_ready{queue="mail"} 120.0' in get(f"{address}/metrics")[1])
        eventually(lambda: values(get(f"{address}/metrics")[1])['umbel_queue_oldest_seconds{queue="mail"}'] > 1)
        status, text = get(f"{address}/api/v1/scale?queue=mail&target=60&runtime=2")
        assert status == 200
        found = json.loads(text)
        assert (found["backlog"], found["desired_workers"], found["schema"]) == (120, 4, "umbel.scale/1")
        assert found["oldest_seconds"] > 1
        assert json.loads(get(f"{address}/api/v1/scale?queue=celery")[1])["desired_workers"] == 0
        status, text = get(f"{address}/api/v1/scale?queue=post")
        assert status == 400 and "unknown queue 'post'; there are celery, mail" in text
        assert get(f"{address}/nothing")[0] == 404


def test_a_schedule_that_nobody_sends_is_late(folder: Path, env: dict[str, str]) -> None:
    with exporter(folder, env) as address:
        beat = WorkerProcess([sys.executable, "-m", "umbel", "-A", "shop", "beat", "-l", "info"], folder, env)
        series = 'umbel_schedule_late_seconds{schedule="every-second"}'
        try:
            sent = 'umbel_schedule_last_sent_timestamp_seconds{schedule="every-second"}'
            eventually(lambda: sent in values(get(f"{address}/metrics")[1]))
            first = values(get(f"{address}/metrics")[1])[sent]
            eventually(lambda: values(get(f"{address}/metrics")[1])[sent] > first)
            beat.process.send_signal(signal.SIGSTOP)
            eventually(lambda: values(get(f"{address}/metrics")[1])[series] > 3)
        finally:
            beat.process.send_signal(signal.SIGCONT)
            beat.stop()


def test_rabbitmq_tells_less_and_nothing_is_made_up(folder: Path, rabbitmq_url: str) -> None:
    env = environment(BROKER=rabbitmq_url)
    (folder / "shop.py").write_text(SHOP.replace('backend=os.environ["BROKER"],', ""))
    with exporter(folder, env, "--enable-events") as address:
        with worker("shop", "-l", "info", "-n", "w1@box", cwd=folder, env=env):
            eventually(lambda: 'umbel_queue_consumers{queue="mail"} 1.0' in get(f"{address}/metrics")[1])
            run("import shop\nfor n in range(3): shop.add.delay(n, n)", cwd=folder, env=env)
            series = 'umbel_tasks_total{name="shop.add",queue="celery",state="succeeded"}'
            eventually(lambda: values(get(f"{address}/metrics")[1]).get(series) == 3)
        run("import shop\nfor _ in range(7): shop.mail.delay()", cwd=folder, env=env)
        eventually(lambda: values(get(f"{address}/metrics")[1]).get('umbel_queue_ready{queue="mail"}') == 7)
        page = get(f"{address}/metrics")[1]
        assert not {series for series in values(page) if re.match("umbel_queue_(unacked|scheduled|oldest)", series)}
        found = json.loads(get(f"{address}/api/v1/scale?queue=mail&target=1&runtime=1")[1])
        assert (found["backlog"], found["desired_workers"], found["oldest_seconds"]) == (7, 7, None)


def test_without_an_app_names_are_learned_from_the_workers(folder: Path, redis_url: str) -> None:
    env = environment(BROKER=redis_url, UMBEL_BROKER_URL=redis_url)
    with (
        worker("shop", "-l", "info", "-E", cwd=folder, env=env),
        exporter(folder, env, "-Q", "celery,mail", target=None) as address,
    ):
        eventually(lambda: 'umbel_queue_consumers{queue="mail"} 1.0' in get(f"{address}/metrics")[1])
        run("import shop; shop.mail.delay().get(timeout=30)", cwd=folder, env=env)
        series = 'umbel_tasks_total{name="shop.mail",queue="mail",state="succeeded"}'
        eventually(lambda: values(get(f"{address}/metrics")[1]).get(series) == 1)


def test_a_worker_s_own_page_needs_no_prometheus_client(folder: Path, env: dict[str, str]) -> None:
    port = free_port()
    (folder / "prometheus_client.py").write_text("raise ImportError('not installed')")
    options = ("-l", "info", "-c", "2", "-n", "w1@box", "--health-port", str(port))
    with worker("shop", *options, cwd=folder, env=env):
        run(WORK, cwd=folder, env=env)
        address = f"http://127.0.0.1:{port}/metrics"
        series = 'umbel_worker_tasks_total{worker="w1@box",name="shop.add"}'
        eventually(lambda: values(get(address)[1]).get(series) == 5)
        eventually(lambda: values(get(address)[1])['umbel_worker_ready{worker="w1@box"}'] == 1)
        # A message can ask for any name. It counts as run here, for its errback is told.
        run("import shop\nshop.app.send_task('evil.name', link_error=shop.told.s())", cwd=folder, env=env)
        series = 'umbel_worker_tasks_total{worker="w1@box",name="other"}'
        eventually(lambda: values(get(address)[1]).get(series) == 1)
        assert "evil" not in get(address)[1]
        found = values(get(address)[1])
        assert found['umbel_worker_slots{worker="w1@box",state="free"}'] == 2
        assert found['umbel_worker_processes{worker="w1@box"}'] == 2
        assert found['umbel_worker_rss_bytes{worker="w1@box",process="pool"}'] > 1 << 20
        promtool("check", "metrics", given=get(address)[1])


def test_without_prometheus_client_the_command_says_what_to_install(folder: Path, sqlite_url: str) -> None:
    (folder / "prometheus_client.py").write_text("raise ModuleNotFoundError('x', name='prometheus_client')")
    command = [sys.executable, "-m", "umbel", "-A", "shop", "metrics"]
    env = environment(BROKER=sqlite_url, PYTHONPATH=str(folder))
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 78
    assert done.stderr == "Error: metrics need prometheus_client: pip install 'umbel[metrics]'\n"


def test_printed_once(folder: Path, redis_url: str) -> None:
    env = environment(BROKER=redis_url)
    with worker("shop", "-l", "info", "-n", "w1@box", cwd=folder, env=env):
        command = [sys.executable, "-m", "umbel", "-A", "shop", "metrics", "--metrics", "umbel,flower"]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    found = values(done.stdout)
    assert found['umbel_worker_up{worker="w1@box"}'] == 1 == found['flower_worker_online{worker="w1@box"}']
    assert found['umbel_queue_consumers{queue="mail"}'] == 1


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--metrics", "flowers"], 78, "unknown set of metrics 'flowers'"),
        (["-b", "memory://"], 69, "memory:// lives in one process"),
    ],
)
def test_what_cannot_be_measured(options: list[str], code: int, said: str, folder: Path, sqlite_url: str) -> None:
    command = [sys.executable, "-m", "umbel", "-A", "shop", "metrics", *options]
    env = environment(BROKER=sqlite_url)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.timeout(120)
def test_prometheus_scrapes_it_and_the_board_and_the_alerts_find_what_they_name(folder: Path, redis_url: str) -> None:
    env = environment(BROKER=redis_url, UMBEL_RUN_DIR=str(folder / "run"))
    sets = "umbel,celery-exporter,flower"
    run("import shop; shop.app.schedules.set('later', task='shop.add', schedule=3600)", cwd=folder, env=env)
    with (
        exporter(folder, env, "--enable-events", "--metrics", sets) as address,
        # A port that is free now that the exporter has its own.
        worker("shop", "-l", "info", "-c", "2", "-E", "--health-port", str(port := free_port()), cwd=folder, env=env),
    ):
        run(WORK, cwd=folder, env=env)
        jobs = {"umbel": address.removeprefix("http://"), "umbel-workers": f"127.0.0.1:{port}"}
        with Prometheus(folder, jobs, RULES) as prometheus:
            eventually(lambda: len(prometheus.query("up == 1")) == 2)
            eventually(lambda: bool(prometheus.query('umbel_tasks_total{name="shop.bad",state="failed"} == 1')))
            run(WORK, cwd=folder, env=env)  # what a rate is made of
            empty: set[str] = set()

            def drawn() -> bool:
                empty.clear()
                empty.update(title for title, query in board_queries() if not prometheus.query(query))
                return not empty

            eventually(drawn)
            for old in (
                "celery_task_succeeded_total",
                "celery_queue_length",
                "flower_events_total",
                "flower_worker_online",
            ):
                assert prometheus.query(old), old
            (group,) = prometheus.ask("rules")["groups"]
            assert len(group["rules"]) == 9
            eventually(lambda: all(rule["health"] == "ok" for rule in prometheus.ask("rules")["groups"][0]["rules"]))
            known = set(prometheus.ask("label/__name__/values"))
        ours = get(f"{address}/metrics")[1]
        own = "".join(re.findall(r"^(?:# \w+ )?umbel_.*\n", ours, re.MULTILINE))
        promtool("check", "metrics", given=own)
    named = set(re.findall(r"\bumbel_\w+", RULES.read_text()) + re.findall(r"\bumbel_\w+", str(board_queries())))
    assert named <= known, named - known


def test_the_rules_are_rules() -> None:
    assert "9 rules found" in promtool("check", "rules", str(RULES))
    assert "valid prometheus config" in promtool("check", "config", str(RULES.with_name("prometheus.yml")))
