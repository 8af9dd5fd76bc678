"""The table of the import alias: it is whole, it says why where it has a gap, and the page is made from it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from umbel.celery import pages, refusals

ROOT = Path(__file__).resolve().parents[2]


def maker() -> Any:
    path = ROOT / "docs" / "make_compatibility.py"
    spec = importlib.util.spec_from_file_location("make_compatibility", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def survey() -> Any:
    return maker().survey()


def test_every_module_of_celery_is_there_or_says_what_to_do_instead(survey: Any) -> None:
    _, names, answers = survey
    assert len(names) > 150
    unexplained = [module for module, answer in answers.items() if isinstance(answer, str) and "no module" in answer]
    assert unexplained == []


def test_every_public_name_of_celery_is_there_or_says_what_to_do_instead(survey: Any) -> None:
    _, _, answers = survey
    missing = {
        f"{module}.{name}": error
        for module, answer in answers.items()
        if isinstance(answer, dict)
        for name, error in answer.items()
        if error is not None
    }
    unexplained = {name: error for name, error in missing.items() if "has no attribute" in error}
    assert unexplained == {}


def test_what_programs_import_most_is_there(survey: Any) -> None:
    _, _, answers = survey
    whole = """
        celery celery._state celery.app celery.app.base celery.app.control celery.app.log celery.app.registry
        celery.app.task celery.app.trace celery.canvas celery.events celery.events.state celery.exceptions
        celery.contrib.abortable celery.contrib.pytest celery.contrib.testing.app celery.contrib.testing.worker
        celery.bootsteps celery.local celery.loaders.app celery.result celery.schedules celery.signals celery.states
        celery.utils celery.utils.functional celery.utils.imports celery.utils.log celery.utils.nodenames
        celery.utils.serialization celery.utils.text celery.utils.time celery.worker celery.worker.request
    """.split()
    gaps = {module: answers[module] for module in whole if set(answers[module].values()) != {None}}
    assert gaps == {}


def test_the_page_is_made_from_the_table() -> None:
    written = (ROOT / "docs" / "celery-names.md").read_text()
    assert maker().render() == written, "the page is old: make docs"


def test_no_name_of_the_table_is_listed_twice_and_every_home_that_exists_has_it() -> None:
    wrong = []
    for module in pages.PAGES:
        if pages.missing_home(module) is not None:
            continue
        for name, candidates in pages.names_of(module).items():
            for home, attribute in candidates:
                if pages._exists(home) and pages._attribute(home, attribute) is pages._NOTHING:
                    wrong.append(f"{module}.{name}: {home} has no {attribute}")
    assert wrong == []


def test_what_is_refused_is_a_name_of_celery(survey: Any) -> None:
    _, names, _ = survey
    known = {*names, *(f"{module}.{name}" for module, listed in names.items() for name in listed)}
    # What needs a library that is not installed cannot be listed, only its module.
    assert [name for name in refusals.REFUSED if name not in known] == []


def test_the_switch_folder_holds_three_packages_that_only_step_aside() -> None:
    folder = ROOT / "src" / "umbel" / "celery" / "as-celery"
    files = sorted(path for path in folder.rglob("*.py"))
    assert [path.parent.name for path in files] == ["billiard", "celery", "kombu"]
    for path in files:
        statements = ast.parse(path.read_text()).body[1:]
        assert [ast.unparse(each) for each in statements] == ["from umbel.celery import enter", "enter(__name__)"]
