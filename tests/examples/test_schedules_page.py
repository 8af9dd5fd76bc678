"""The programs of the page about periodic tasks do what is said there."""

from __future__ import annotations

import re
from pathlib import Path

from support import environment, run, worker

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_programs_of_the_page(tmp_path: Path) -> None:
    page = (ROOT / "docs/schedules.md").read_text()
    program, own, changes, inside = BLOCK.findall(page)
    assert program.startswith("# shop.py\n") and "    umbel -A shop worker -B -l info\n" in page
    # Nobody waits for ten seconds here.
    (tmp_path / "shop.py").write_text(program.replace('"schedule": 10.0', '"schedule": 0.5'))
    env = environment()
    with worker("shop", "-B", "-l", "info", "-c", "1", cwd=tmp_path, env=env) as running:
        running.expect("'report: often'")
        said = run(f"from shop import app\n{changes}", cwd=tmp_path, env=env)
        assert said.count("often") == 5
        running.expect("'report: nightly'")
    run(f"from shop import app, report\n{inside}", cwd=tmp_path, env=env)
    made = "print(repr(Tides('Bari', every=timedelta(hours=5))), Tides('Bari') == Tides('Bari') != Tides('Genoa'))"
    assert run(f"{own}\n{made}", cwd=tmp_path, env=env).endswith("datetime.timedelta(seconds=18000)) True\n")


def test_the_notes_that_the_page_shows(tmp_path: Path) -> None:
    page = (ROOT / "docs/schedules.md").read_text()
    (shown,) = re.findall(r"schedules next nightly -n 2 --after (\S+)\n((?:    2.*\n)+)", page)
    program, *_ = BLOCK.findall(page)
    (tmp_path / "shop.py").write_text(program)
    code = f"""
from datetime import datetime, timezone
from shop import app
after = datetime.fromisoformat({shown[0]!r}).replace(tzinfo=timezone.utc)
for fire in app.schedules.next("nightly", count=2, after=after):
    print(fire.at.isoformat(), fire.name, fire.task, *fire.notes)
"""
    said = run(code, cwd=tmp_path, env=environment())
    assert said.split() == shown[1].split()
