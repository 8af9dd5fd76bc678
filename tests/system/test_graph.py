"""``umbel graph``: what it draws, beside what Celery draws."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import environment, worker
from umbel.cli import graph

APP = """
import os
from {module} import {cls}
app = {cls}("drawn", broker="{broker}", backend="{backend}")
app.conf.broker_connection_retry = False
"""
STEPS = """
from umbel.celery.bootsteps import StartStopStep

class First(StartStopStep):
    requires = {"celery.worker.components:Timer"}

class Second(StartStopStep):
    requires = {First}

app.steps["worker"] |= {First, Second}
"""


def project(folder: Path, module: str, *, broker: str, backend: str) -> Path:
    cls = {"celery": "Celery", "umbel": "Umbel"}[module]
    (folder / f"{module}_drawn.py").write_text(
        APP.format(module=module, cls=cls, broker=broker, backend=backend) + (STEPS if module == "umbel" else "")
    )
    return folder


def draw(module: str, *words: str, cwd: Path, status: int = 0) -> str:
    command = [sys.executable, "-m", module, "-A", f"{module}_drawn", "graph", *words]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def read(text: str) -> tuple[set[str], set[tuple[str, str]]]:
    """Return the labels of nodes and the arrows between them, of a graph in Graphviz' language."""
    lines = text.splitlines()
    assert lines[0] == "digraph dependencies {" and lines[-1] == "}"
    assert not [
        line for line in lines[1:-1] if re.fullmatch(r'    \w+ \[.*\]|    ".*"( -> ".*")?( \[.*\])?', line) is None
    ]
    labels = {}
    for line in lines:
        found = re.fullmatch(r'    "((?:\\.|[^"\\])*)"(?: \[(.*)\])?', line)
        if found:
            label = re.search(r'\blabel="([^"]*)"', found[2] or "")
            labels[found[1]] = label[1] if label else found[1]
    arrows = re.findall(r'^    "((?:\\.|[^"\\])*)" -> "((?:\\.|[^"\\])*)"', text, re.MULTILINE)
    # Each slot has a number of its own in both, counted from 1.
    return {f"{name}={label}" for name, label in labels.items()}, set(arrows)


@pytest.mark.parametrize(
    "words",
    [
        ["nodes:w1,w2", "threads:2,1"],
        ["nodes:w1@a,w2@b"],
        ["nodes:a,b,c,d,e,f", "threads:9,1,1,1,1,5", "enumerate:1"],
        ["nodes:a,b,c,d,e,f", "threads:9,1,1,1,1,5", "generic:1", "broker:amqp://here", "backend:redis://there"],
        ["nodes:a,b,c,d,e,f", "threads:9,1,1,1,1,5", "wmax:0", "tmax:0"],
        ["nodes:a,b", "threads:9,4", "tmax:5"],
    ],
    ids=" ".join,
)
def test_workers_are_drawn_as_celery_draws_them(words: list[str], tmp_path: Path) -> None:
    places = {"broker": "redis://:secret@localhost:1/0", "backend": "redis://localhost:1/1"}
    ours, theirs = (
        draw(module, "workers", *words, cwd=project(tmp_path, module, **places)) for module in ("umbel", "celery")
    )
    assert read(ours) == read(theirs)
    assert "secret" not in ours


def test_the_password_of_a_backend_is_not_drawn(tmp_path: Path) -> None:
    cwd = project(tmp_path, "umbel", broker="redis://localhost:1/0", backend="redis://:secret@localhost:1/1")
    assert '"redis://:**@localhost:1/1"' in draw("umbel", "workers", "nodes:w", cwd=cwd)
    assert "secret" not in draw("umbel", "workers", "nodes:w", "broker:amqp://me:secret@here", cwd=cwd)


def test_workers_that_answer_are_drawn(tmp_path: Path) -> None:
    cwd = project(tmp_path, "umbel", broker=f"sqlite:///{tmp_path}/q.db", backend=f"sqlite:///{tmp_path}/q.db")
    assert "No nodes replied within time constraint" in draw("umbel", "workers", cwd=cwd, status=69)
    with worker("umbel_drawn", "-n", "drawn@here", "-c", "2", "-l", "info", cwd=cwd, env=environment()):
        nodes, arrows = read(draw("umbel", "workers", cwd=cwd))
    assert {"drawn@here=drawn@here", "thr-1=0", "thr-2=1"} <= nodes
    assert {("thr-1", "drawn@here"), ("drawn@here", f"sqlite:///{tmp_path}/q.db")} <= arrows


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["noodes:a"], "'nodes'"),
        (["threads:1"], "needs nodes:"),
        (["nodes:a,b", "threads:1"], "2 numbers"),
        (["nodes:a", "threads:x"], "1 numbers"),
        (["nodes:a", "wmax:1"], "at least 2"),
        (["nodes:a", "tmax:many"], "'many'"),
    ],
)
def test_what_cannot_be_drawn_is_a_usage_error(words: list[str], said: str, tmp_path: Path) -> None:
    cwd = project(tmp_path, "umbel", broker="memory://", backend="memory://")
    assert said in draw("umbel", "workers", *words, cwd=cwd, status=2)


def test_parts_and_steps_of_ones_own_are_drawn(tmp_path: Path) -> None:
    cwd = project(tmp_path, "umbel", broker="memory://", backend="memory://")
    nodes, arrows = read(draw("umbel", "bootsteps", cwd=cwd))
    assert {"Supervisor=Supervisor", "Engine=Engine", "First=First"} <= nodes
    assert {("Second", "First"), ("First", "Supervisor"), ("Child", "Zygote")} <= arrows
    nodes, arrows = read(draw("umbel", "bootsteps", "consumer", cwd=cwd))
    assert "Engine=Engine" in nodes and not {"Supervisor=Supervisor", "First=First"} & nodes
    assert "'worker', 'consumer'" in draw("umbel", "bootsteps", "beat", cwd=cwd, status=2)


def bases(name: str) -> list[type]:
    place, _ = {**graph.WORKER, **graph.CONSUMER}[name]
    module, _, attribute = place.partition(":")
    return [base for base in getattr(importlib.import_module(module), attribute).__mro__ if base.__module__ > "umbel"]


@pytest.mark.parametrize("name", [*graph.WORKER, *graph.CONSUMER])
def test_each_part_is_there_and_knows_what_it_needs(name: str) -> None:
    assert bases(name)[0].__name__ == name
    text = "".join(inspect.getsource(sys.modules[base.__module__]) for base in bases(name))
    for needed in {**graph.WORKER, **graph.CONSUMER}[name][1]:
        assert any(re.search(rf"\b{base.__name__}\b", text) for base in bases(needed)), needed
