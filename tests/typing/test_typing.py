"""What a type checker knows of a program that uses Umbel.

The programs are checked by ``mypy --strict`` and never run. What must be an error there carries an ignore for exactly
that error, so that mypy complains about the ignore if it is none.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROGRAMS = sorted((HERE / "programs").glob("*.py"))


def check(*files: Path) -> str:
    """Return what mypy says about these files."""
    command = [sys.executable, "-m", "mypy", "--strict", "--show-error-codes", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)  # without its cache mypy reads the whole package first
def test_the_programs_are_clean() -> None:
    assert len(PROGRAMS) >= 4
    said = check(*PROGRAMS)
    about = [line for line in said.splitlines() if line.startswith("tests/typing/")]
    assert about == [], "\n".join(about)


@pytest.mark.timeout(300)
def test_an_error_that_is_missing_is_noticed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from umbel import Umbel\n"
        "app = Umbel('x')\n"
        "@app.task\n"
        "def add(x: int) -> int:\n"
        "    return x\n"
        "add.delay(1)  # type: ignore[arg-type]\n"
        "add.delay('1')\n"
    )
    said = check(program)
    assert 'program.py:6: error: Unused "type: ignore" comment' in said
    assert 'program.py:7: error: Argument 1 to "delay" of "Task" has incompatible type "str"' in said
