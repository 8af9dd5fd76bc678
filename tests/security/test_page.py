"""Every claim of docs/security.md names its test, and every test it names is there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_the_page_on_security_names_tests_that_exist() -> None:
    page = (HERE.parents[1] / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(test_s\d\w+)`", page))
    there = {name for path in HERE.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    assert len(named) > 50
    assert named - there == set()


def test_every_setting_of_the_page_is_one() -> None:
    from umbel.setting_rows import ROWS

    page = (HERE.parents[1] / "docs" / "security.md").read_text()
    named = set(re.findall(r"`((?:security|accept|result|task|max)_[a-z_]+)`", page))
    assert {name for name in named if not name.startswith("test_")} <= set(ROWS)
    assert "security_key" in named
