from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from umbel import exceptions, meta, states
from umbel.exceptions import ContentDisallowed, DecodeError, EncodeError, RemoteError, SecurityError
from umbel.resultbase import ResultBase

DONE = datetime(2026, 11, 21, 11, 55, 50, 728915, tzinfo=UTC)


def document(payload: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(payload)
    return value


def test_a_success_is_celerys_document() -> None:
    payload = meta.encode_meta("id1", states.SUCCESS, 7, date_done=DONE, children=[])
    assert document(payload) == {
        "status": "SUCCESS",
        "result": 7,
        "traceback": None,
        "children": [],
        "date_done": "2026-11-21T11:55:50.728915+00:00",
        "task_id": "id1",
    }
    assert meta.decode_meta(payload) == document(payload)


def test_an_unready_state_has_no_date() -> None:
    payload = meta.encode_meta("id1", "PROGRESS", {"p": 3}, date_done=DONE)
    assert document(payload)["date_done"] is None
    assert meta.decode_meta(payload)["result"] == {"p": 3}


@pytest.mark.parametrize("state", sorted(states.EXCEPTION_STATES))
def test_an_exception_makes_the_round_trip(state: str) -> None:
    payload = meta.encode_meta("id1", state, ValueError("bad", 3), traceback="Traceback ...")
    assert document(payload)["result"] == {
        "exc_type": "ValueError",
        "exc_message": ["bad", 3],
        "exc_module": "builtins",
    }
    decoded = meta.decode_meta(payload)
    assert isinstance(decoded["result"], ValueError)
    assert decoded["result"].args == ("bad", 3)
    assert decoded["traceback"] == "Traceback ..."


def test_our_own_exceptions_are_celerys_on_the_wire() -> None:
    payload = meta.encode_meta("id1", states.REVOKED, exceptions.TaskRevokedError("revoked"))
    assert document(payload)["result"]["exc_module"] == "celery.exceptions"
    assert isinstance(meta.decode_meta(payload)["result"], exceptions.TaskRevokedError)


def test_hostile_exceptions_are_not_called() -> None:
    def read(exc_module: str, exc_type: str) -> Any:
        stored = {"exc_type": exc_type, "exc_module": exc_module, "exc_message": "rm -rf"}
        return meta.decode_meta(json.dumps({"status": "FAILURE", "result": stored}).encode())["result"]

    assert isinstance(read("os", "system"), SecurityError)
    assert isinstance(read("no.such.module", "Error"), RemoteError)


def test_the_request_gives_ids_and_extended_fields() -> None:
    request = SimpleNamespace(
        group="g",
        parent_id="p",
        task="proj.add",
        args=[1],
        kwargs={"b": 2},
        hostname="w1@box",
        retries=1,
        delivery_info={"routing_key": "celery"},
        stamps={"tenant": ["a"], "other": 1},
        stamped_headers=["tenant"],
        children=[SimpleResult()],
    )
    plain = document(meta.encode_meta("id1", states.SUCCESS, 3, request=request))
    assert (plain["group_id"], plain["parent_id"]) == ("g", "p")
    assert plain["children"] == [[["c", None], None]]
    assert "name" not in plain
    full = document(meta.encode_meta("id1", states.SUCCESS, 3, request=request, extended=True))
    assert {key: full[key] for key in ("name", "args", "kwargs", "worker", "retries", "queue")} == {
        "name": "proj.add",
        "args": [1],
        "kwargs": {"b": 2},
        "worker": "w1@box",
        "retries": 1,
        "queue": "celery",
    }
    assert full["stamped_headers"] == ["tenant"]
    assert full["tenant"] == ["a"]
    assert "other" not in full


class SimpleResult(ResultBase):
    def as_tuple(self) -> tuple[Any, Any]:
        return ("c", None), None


def test_a_returned_result_is_stored_as_its_tuple() -> None:
    assert document(meta.encode_meta("id1", states.SUCCESS, SimpleResult()))["result"] == [["c", None], None]


def test_a_value_with_a_method_of_that_name_stays_what_it_is() -> None:
    payload = meta.encode_meta("id1", states.SUCCESS, Decimal("-2.50"))
    assert meta.decode_meta(payload)["result"] == Decimal("-2.50")


@pytest.mark.parametrize("name", ["gzip", "bzip2", "lzma"])
def test_a_compressed_payload_says_so_itself(name: str) -> None:
    payload = meta.encode_meta("id1", states.SUCCESS, "x" * 1000, compression=name)
    assert payload.startswith(b"\x00celery-compressed\x00application/")
    assert len(payload) < 300
    assert meta.decode_meta(payload)["result"] == "x" * 1000


def test_only_accepted_serializers_are_read() -> None:
    payload = meta.encode_meta("id1", states.SUCCESS, (1, 2), serializer="pickle")
    with pytest.raises(ContentDisallowed):
        meta.decode_meta(payload, serializer="pickle")
    assert meta.decode_meta(payload, serializer="pickle", accept=["pickle"])["result"] == (1, 2)


@pytest.mark.parametrize(
    "payload", [b"", b"3", b"[]", b"{}", b'{"status": 1}', b"\xff\xfe", b"\x00celery-compressed\x00"]
)
def test_what_is_no_document_cannot_be_read(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        meta.decode_meta(payload)


def test_a_result_that_cannot_be_encoded_names_its_task() -> None:
    with pytest.raises(EncodeError, match="id1"):
        meta.encode_meta("id1", states.SUCCESS, object())


def test_groups_and_chord_members() -> None:
    tuples = [["g", None], [[["a", None], None], [["b", None], None]]]
    payload = meta.encode_group(tuples)
    assert document(payload) == {"result": tuples}
    assert meta.decode_group(payload) == tuples
    part = meta.encode_part("a", states.SUCCESS, 3)
    assert json.loads(part) == [1, "a", "SUCCESS", 3]
    assert meta.decode_part(part) == ("a", "SUCCESS", 3)
    _, _, error = meta.decode_part(meta.encode_part("a", states.FAILURE, KeyError("k")))
    assert isinstance(error, KeyError)
    for wrong in (b"{}", b"[1]"):
        with pytest.raises(DecodeError):
            meta.decode_part(wrong)
        with pytest.raises(DecodeError):
            meta.decode_group(wrong)
