"""Each sentence of the page of promises leads to a test that exists, and its program does what is said there."""

from __future__ import annotations

import ast
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from support import environment, worker
from umbel import Umbel

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "promises.md"
TEXT = PAGE.read_text()
DEFINITIONS = dict(re.findall(r"^\[(\d+)\]: (\S+)$", TEXT, re.MULTILINE))
MARK = re.compile(r"\[\[(\d+)\]\]")
#: Paragraphs that introduce the page and say what its words mean, and what is so by the meaning of the word.
INTRODUCTION = ("What survives which crash", "Words.")
OBVIOUS = ("A power cut takes what was not on disk.",)


def pieces() -> list[str]:
    """The paragraphs, bullets and rows of the page, without headings, programs and what is not promised."""
    text = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^## What is not promised$.*?(?=^\[1\]:)", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(#|\[\d+\]:|\|---|\| (What happens|Setting) ).*$", "", text, flags=re.MULTILINE)
    found = []
    for block in re.split(r"\n\s*\n", text):
        for piece in re.split(r"\n(?=[*|] )", block.strip()):
            if piece.strip():
                found.append(" ".join(piece.split()).removeprefix("* ").replace("**", ""))
    return found


def sentences() -> list[str]:
    """What is said, a row of a table counting as one sentence."""
    found = []
    for piece in pieces():
        if piece.startswith(INTRODUCTION):
            continue
        found += [piece] if piece.startswith("|") else re.split(r"(?<=[.?]) (?=[A-Z`0-9*])", piece)
    return found


def test_the_page_is_read_in_five_minutes() -> None:
    prose = " ".join(pieces())
    assert 400 < len(prose.split()) < 1300
    assert len(sentences()) > 30


@pytest.mark.parametrize("sentence", sentences())
def test_a_sentence_has_its_proof(sentence: str) -> None:
    assert MARK.search(sentence) or sentence in OBVIOUS, "where is its test?"
    assert set(MARK.findall(sentence)) <= set(DEFINITIONS)


@pytest.mark.parametrize(("number", "target"), DEFINITIONS.items())
def test_a_proof_exists(number: str, target: str) -> None:
    path, _, name = target.partition("#")
    assert name.startswith("test_")
    tree = ast.parse((PAGE.parent / path).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert f"[[{number}]]" in TEXT, "nothing refers to it"


def test_the_numbers_are_in_order() -> None:
    first = list(dict.fromkeys(MARK.findall(TEXT)))
    assert first == list(DEFINITIONS) == [str(number) for number in range(1, len(DEFINITIONS) + 1)]
    assert len(set(DEFINITIONS.values())) == len(DEFINITIONS)


def test_a_store_of_ones_own_refuses_a_late_attempt(tmp_path: Path, sqlite_url: str) -> None:
    (program,) = re.findall(r"^```python\n(# shipping.py\n.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "shipping.py").write_text(program)

    def orders(*statement: Any) -> list[Any]:
        with sqlite3.connect(tmp_path / "orders.sqlite") as connection:
            rows = connection.execute(*statement).fetchall()
        connection.close()
        return rows

    orders("CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT, fence INTEGER DEFAULT 0)")
    orders("INSERT INTO orders (id, state) VALUES (1, 'new')")
    client = Umbel("client", broker=sqlite_url, backend=sqlite_url, set_as_current=False)
    env = environment(BROKER_URL=sqlite_url, RESULT_BACKEND=sqlite_url)
    env |= {"CELERY_BROKER_URL": sqlite_url, "CELERY_RESULT_BACKEND": sqlite_url}
    with worker("shipping", "-c", "1", "-l", "info", cwd=tmp_path, env=env):
        assert client.send_task("shipping.ship", (1, "packed")).get(timeout=20) is True
        ((state, fence),) = orders("SELECT state, fence FROM orders")
        assert state == "packed" and fence > 0
        assert client.send_task("shipping.ship", (1, "sent")).get(timeout=20) is True
        ((state, higher),) = orders("SELECT state, fence FROM orders")
        assert state == "sent" and higher > fence
        # As if an attempt that came later had been there.
        orders("UPDATE orders SET fence = ?", (10**17,))
        assert client.send_task("shipping.ship", (1, "lost")).get(timeout=20) is False
        assert orders("SELECT state FROM orders") == [("sent",)]
    client.close()
