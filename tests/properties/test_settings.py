"""Settings and URLs, for whatever people write."""

from __future__ import annotations

import contextlib
import string
import threading
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from umbel import drivers
from umbel.exceptions import ImproperlyConfigured
from umbel.setting_names import canonical, mistake
from umbel.setting_rows import ROWS
from umbel.settings import Settings

NAMES = st.sampled_from(["task_serializer", "event_serializer", "worker_prefetch_multiplier", "mine"])
VALUES = st.integers(0, 5)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
# Letters that neither quoting nor the rest of the URLs below contain.
SECRETS = st.text(alphabet="ŠĐČŽ" + string.digits[7:] + "@/:;?#&=% ", min_size=1).map(lambda text: f"ŠĐ{text}ŽŠ")


class Precedence(RuleBasedStateMachine):
    """In whatever order a program configures, the strongest layer wins, and the latest inside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conf = Settings()
        self.changes: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}
        self.source: dict[str, Any] = {}
        self.fallbacks: dict[str, Any] = {}

    @rule(name=NAMES, value=VALUES)
    def change(self, name: str, value: int) -> None:
        self.conf[name] = value
        self.changes[name] = value

    @rule(name=NAMES)
    def take_back(self, name: str) -> None:
        with contextlib.suppress(KeyError):
            del self.conf[name]
        self.changes.pop(name, None)

    @rule(values=st.dictionaries(NAMES, VALUES))
    def update(self, values: dict[str, Any]) -> None:
        self.conf.update(values)
        self.changes.update(values)

    @rule(values=st.dictionaries(NAMES, VALUES))
    def load(self, values: dict[str, Any]) -> None:
        self.conf.load_object(dict(values))
        self.source = values

    @rule(values=st.dictionaries(NAMES, VALUES))
    def add_defaults(self, values: dict[str, Any]) -> None:
        self.conf.add_defaults(dict(values))
        self.defaults.update(values)

    @rule(name=NAMES, value=VALUES)
    def fall_back(self, name: str, value: int) -> None:
        self.conf.setdefault(name, value)
        self.fallbacks.setdefault(name, value)

    @rule(name=NAMES)
    def read(self, name: str) -> None:
        expected = {**self.fallbacks, **self.source, **self.defaults, **self.changes}
        if name in expected:
            read = int if ROWS.get(name) is None or ROWS[name].type == "int" else str
            assert self.conf[name] == getattr(self.conf, name) == read(expected[name])
        elif name in ROWS:
            assert self.conf[name] == ROWS[name].default
        else:
            assert name not in self.conf

    @invariant()
    def changes_are_known(self) -> None:
        assert set(self.conf.changes) == set(self.changes)


TestPrecedence = Precedence.TestCase


@given(st.sampled_from(sorted(ROWS)), ANYTHING)
def test_a_value_is_read_for_good_or_refused(name: str, value: Any) -> None:
    try:
        conf = Settings({name: value})
    except ImproperlyConfigured as exc:
        assert name in str(exc)
        return
    # What was read once is read again unchanged: a child process is given what its parent read.
    read = conf.changes[name]
    assert repr(Settings({name: read}).changes[name]) == repr(read)


@given(st.text(max_size=30), ANYTHING)
def test_a_name_is_ours_or_a_mistake_or_kept(name: str, value: Any) -> None:
    if canonical(name) is not None:
        return
    if mistake(name) is not None:
        with pytest.raises(ImproperlyConfigured):
            Settings({name: value})
    else:
        assert repr(Settings({name: value})[name]) == repr(value)


@given(st.sampled_from(sorted(ROWS)), st.data())
def test_one_wrong_letter_is_noticed(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from(string.ascii_lowercase))
    wrong = data.draw(st.sampled_from([name[:at] + name[at + 1 :], name[:at] + letter + name[at:]]))
    if wrong not in ROWS:
        assert mistake(wrong) is not None


@given(
    SECRETS,
    st.sampled_from(["", "me"]),
    st.sampled_from(["redis://{}@h:1/0", "sentinel://{0}@h:1;sentinel://{0}@i:2/0"]),
)
def test_a_password_is_never_shown(secret: str, user: str, form: str) -> None:
    for written in (secret, quote(secret, safe="")):
        shown = drivers.mask(form.format(f"{user}:{written}"))
        assert "Š" not in shown
        assert "Ž" not in shown
        assert written not in shown
        assert shown.startswith(form.partition("{")[0] + user + ":**@")


@given(st.text(), st.text())
def test_different_apps_have_different_files(one: str, other: str) -> None:
    if one != other:
        assert drivers.safe_name(one) != drivers.safe_name(other)
    assert drivers.safe_name(one).strip("-._") or one


def test_a_reader_never_sees_a_former_value_after_a_change() -> None:
    conf = Settings()
    started = threading.Barrier(5)

    def read() -> None:
        started.wait()
        for _ in range(300):
            _ = conf.worker_prefetch_multiplier, conf.task_serializer

    readers = [threading.Thread(target=read) for _ in range(4)]
    for thread in readers:
        thread.start()
    started.wait()
    for n in range(300):
        conf.worker_prefetch_multiplier = n
        assert conf.worker_prefetch_multiplier == n
    for thread in readers:
        thread.join()
    assert conf.worker_prefetch_multiplier == 299
