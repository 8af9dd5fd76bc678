"""Wrong settings end a worker before it starts, and the report tells the truth about those without effect."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from umbel.cli.main import cli


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for variable in ("BROKER_URL", "RESULT_BACKEND"):
        for prefix in ("CELERY_", "UMBEL_"):
            monkeypatch.delenv(prefix + variable, raising=False)
    yield tmp_path
    module = sys.modules.pop(_module(tmp_path), None)
    if module is not None:
        module.app.close()


def _module(folder: Path) -> str:
    return f"configured_{folder.name}".replace("-", "_")


def umbel(folder: Path, settings: str, *args: str) -> Result:
    """Run a command for an app with these settings."""
    app = f"from umbel import Umbel\napp = Umbel('shop', broker='sqlite:///{folder}/shop.db', set_as_current=False)\n"
    (folder / f"{_module(folder)}.py").write_text(f"{app}app.config_from_object({settings})\n")
    return CliRunner().invoke(cli, ["-A", _module(folder), *args], prog_name="umbel")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{'lease_ttl': 20}", "set lease_ttl to 30"),
        ("{'broker_transport_options': {'socket_timeout': 11}}", "less than lease_heartbeat (10)"),
        ("{'task_soft_time_limit': 3, 'task_time_limit': 2}", "lower the one or raise the other"),
        ("{'lease_ttl': 'long'}", "'lease_ttl'"),
        ("{'worker_concurency': 2}", "did you mean 'worker_concurrency'?"),
        ("{'broker_transport_options': {'publish_timeout': 3}}", "write publish_timeout = 3"),
        ("{'broker_failover_strategy': 'first'}", "round-robin or shuffle"),
        ("{'broker_read_url': ['sqlite:///a.db', 'sqlite:///b.db']}", "takes one URL"),
        ("{'broker_read_url': 'sentinel://a'}", "master_name"),
        ("{'broker_read_url': 'redis://a/1;redis://b/2'}", "same database"),
        ("{'result_backend': 'redis://h?socket_timeout=soon'}", "socket_timeout must be a number"),
    ],
)
def test_a_worker_ends_with_78_and_one_line(folder: Path, settings: str, said: str) -> None:
    result = umbel(folder, settings, "worker")
    assert result.exit_code == 78, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("SecurityWarning")]
    assert len(lines) == 1 and lines[0].startswith("Error: ") and said in lines[0]
    assert list(folder.glob("*.db")) == []


def test_a_sentinel_s_options_reach_it(folder: Path) -> None:
    settings = "{'broker_url': 'sentinel://:s3cret@h', 'broker_transport_options': {'master_name': 'm'}}"
    result = umbel(folder, f"{settings} | {{'broker_read_url': 'sentinel://:s3cret@h'}}", "report")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "transport:sentinel" in result.stdout and "s3cret" not in result.stdout


def test_the_report_names_transport_options_without_effect(folder: Path) -> None:
    settings = "{'broker_transport_options': {'visibility_timeout': 3600, 'synchronous': 'NORMAL'}, 's3_bucket': 'b'}"
    result = umbel(folder, settings, "report")
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.splitlines()[-1] == (
        "set, but without effect in this version: broker_transport_options.visibility_timeout, s3_bucket"
    )
