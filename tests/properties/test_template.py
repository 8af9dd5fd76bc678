"""A message from a template is the message that encode_call() would have made."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import Umbel
from umbel.envelope import Message, decode_envelope, encode_envelope
from umbel.exceptions import EncodeError
from umbel.message import decode_call
from umbel.template import Template
from umbel.writing import encode_call

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates() | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS: dict[str, Any] = {
    "task": "shop.50% off",
    "serializer": "json",
    "compression": None,
    "headers": None,
    "priority": 3,
    "exchange": "",
    "routing_key": "a.b",
    "timelimit": (3, None),
}


@given(st.lists(VALUES, max_size=3), st.dictionaries(st.text(max_size=5), VALUES, max_size=3))
def test_it_is_equal_to_one_built_by_hand(args: list[Any], kwargs: dict[str, Any]) -> None:
    written = Template(FIELDS).write("b5f1", tuple(args), kwargs, "me")
    by_hand = encode_call(**FIELDS, id="b5f1", args=tuple(args), kwargs=kwargs, reply_to="me")
    tag = written.properties.pop("delivery_tag")
    assert len(tag) == len(by_hand.properties.pop("delivery_tag"))
    # Through the envelope, which knows lists and no tuples.
    by_hand = decode_envelope(encode_envelope(by_hand))
    by_hand.properties.pop("delivery_tag", None)
    assert written == by_hand
    call = decode_call(written, ("json",))
    assert (list(call.args), call.kwargs) == (args, kwargs)


def test_each_has_a_tag_of_its_own() -> None:
    template = Template(FIELDS)
    first, second = (template.write("same", (), {}, "me") for _ in range(2))
    assert first.properties["delivery_tag"] != second.properties["delivery_tag"]


def test_a_sealed_message_opens_when_it_is_looked_at() -> None:
    raw = encode_envelope(Message(body=b"[]", headers={"a": 1}))
    message = Message.sealed(raw)
    assert encode_envelope(message) is raw
    message.headers["a"] = 2
    assert decode_envelope(encode_envelope(message)).headers == {"a": 2}
    for made in (copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))):
        assert made(Message.sealed(raw)) == Message.sealed(raw)
    with pytest.raises(AttributeError, match="'head'"):
        _ = message.head
    assert repr(Message.sealed(raw)).startswith("Message(body=b'[]', content_type='application/json'")


def test_an_argument_that_cannot_be_carried_is_still_named(sqlite_url: str) -> None:
    app = Umbel("shop", broker=sqlite_url)

    @app.task
    def pay(amount: object) -> None: ...

    with pytest.raises(EncodeError, match="argument 1"):
        pay.delay(object())
    assert app.broker.size("celery") == 0
    app.close()
