"""The tree in the docstring is the tree of the classes, and every error pickles."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest

from umbel import exceptions

CLASSES = {
    name: cls
    for name, cls in vars(exceptions).items()
    if inspect.isclass(cls) and issubclass(cls, BaseException) and cls.__module__ == exceptions.__name__
}


def drawn() -> dict[str, list[str]]:
    tree: dict[str, list[str]] = {}
    path: list[str] = []
    for line in (exceptions.__doc__ or "").splitlines():
        match = re.match(r"    ([│ ├└─]*)(\w+)(?: \((.*)\))?$", line)
        if match is None:
            continue
        depth = len(match[1]) // 3
        path[depth:] = [match[2]]
        others = match[3].split(", ") if match[3] else []
        tree[match[2]] = ([path[depth - 1]] if depth else []) + others
    return tree


def test_the_drawn_tree_is_true() -> None:
    tree = drawn()
    assert set(tree) == set(CLASSES)
    for name, bases in tree.items():
        wanted = {CLASSES.get(base) or getattr(builtins, base) for base in bases} or {Exception}
        if name == "TimeoutError":
            wanted = {exceptions.TaskError, builtins.TimeoutError}
        assert set(CLASSES[name].__bases__) == wanted, name


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_errors_pickle_and_print(name: str) -> None:
    error = CLASSES[name]("what went wrong")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert repr(error)


def test_data_survives_pickling() -> None:
    lost = pickle.loads(pickle.dumps(exceptions.BackendStoreError("no", task_id="t", state="SUCCESS")))
    assert (lost.task_id, lost.state) == ("t", "SUCCESS")
    spent = pickle.loads(pickle.dumps(exceptions.MaxRetriesExceededError("no", task_args=(1,), task_kwargs={"a": 2})))
    assert (spent.task_args, spent.task_kwargs) == ((1,), {"a": 2})
    retry = pickle.loads(pickle.dumps(exceptions.Retry("again", ValueError("x"), 3.0)))
    assert (retry.message, repr(retry.exc), retry.when) == ("again", "ValueError('x')", 3.0)


def test_an_error_with_a_broken_repr_can_be_retried() -> None:
    class Broken(Exception):
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    assert "unrepresentable Broken" in str(exceptions.Retry(exc=Broken(), when=1))
