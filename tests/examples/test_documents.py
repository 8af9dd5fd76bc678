"""The programs of the README and of the first page of the documentation do what is said there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import environment, worker

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SESSION = """
import doctest, sys
failed, attempted = doctest.testfile("session.txt", module_relative=False, optionflags=doctest.ELLIPSIS)
print(attempted, "examples")
sys.exit(bool(failed))
"""


@pytest.mark.parametrize("name", ["README.md", "docs/getting-started.md"])
def test_the_programs_of_a_page(name: str, tmp_path: Path) -> None:
    text = (ROOT / name).read_text()
    blocks = BLOCK.findall(text)
    (program,) = [body for kind, body in blocks if kind == "python" and body.startswith("# shop.py\n")]
    sessions = [body for kind, body in blocks if kind == "pycon"]
    assert "    umbel -A shop worker -l info -c 4\n" in text and sessions
    (tmp_path / "shop.py").write_text(program)
    (tmp_path / "session.txt").write_text("\n".join(sessions))
    env = environment(UMBEL_HOME=str(tmp_path / "home"))
    with worker("shop", "-l", "info", "-c", "4", cwd=tmp_path, env=env):
        done = subprocess.run(
            [sys.executable, "-c", SESSION],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-2]) >= len(sessions)


def test_the_other_programs_of_the_first_page_can_be_imported() -> None:
    blocks = BLOCK.findall((ROOT / "docs/getting-started.md").read_text())
    pieces = [body for kind, body in blocks if kind == "python" and not body.startswith("# shop.py\n")]
    code = (
        "from umbel import Umbel\n" + "\n".join(pieces) + "\nassert weigh('leek') == 4.0\nassert 'weigh' in app.tasks\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, env=environment())


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("examples/**/*.md"))
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path = target.partition("#")[0]
        if path and "://" not in path:
            assert (page.parent / path).exists(), f"{page.name}: {target}"
