"""Every stored dataclass survives the way through BSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson.codec_options import CodecOptions
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import AGENT, a_call, a_session, a_session_key, a_turn, an_approval
from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.message import Part
from turnkeeper.domain.session import Session
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import PendingItem, Turn, TurnState
from turnkeeper.store.changeset import Cancel
from turnkeeper.store.mongo.documents import changes, decode, encode
from turnkeeper.store.mongo.unreadable import UnreadableDocument

OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True, tzinfo=UTC)

# What the database can hold: times and durations of a millisecond, 64-bit numbers, text without lone surrogates.
st.register_type_strategy(
    datetime,
    st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 1, 1)).map(  # noqa: DTZ001
        lambda time: time.replace(microsecond=time.microsecond // 1000 * 1000, tzinfo=UTC)
    ),
)
st.register_type_strategy(timedelta, st.integers(-(2**40), 2**40).map(lambda ms: timedelta(milliseconds=ms)))
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))
st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(str, st.text(st.characters(exclude_categories=["Cs"])))

STORED = [Session, Turn, Call, Approval, Agent, Cancel, ErrorDetail]


def _through_bson(document: Mapping[str, Any]) -> dict[str, Any]:
    return bson.decode(bson.encode(document), OPTIONS)


@pytest.mark.parametrize("kind", STORED)
@given(data=st.data())
def test_any_value_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    value = data.draw(st.from_type(kind))
    assert decode(kind, _through_bson(encode(value))) == value


@pytest.mark.parametrize("kind", STORED)
@given(data=st.data())
def test_changes_make_the_new_value_of_the_old_document(kind: type, data: st.DataObject) -> None:
    old, new = data.draw(st.from_type(kind)), data.draw(st.from_type(kind))
    document = _through_bson(encode(old))
    for path, content in _through_bson({"set": [list(item) for item in changes(new).items()]})["set"]:
        _set(document, path.split("."), content)
    assert decode(kind, document) == new


@pytest.mark.parametrize("kind", STORED)
@given(data=st.data())
def test_what_is_stored_need_not_be_written_again(kind: type, data: st.DataObject) -> None:
    old, other = data.draw(st.from_type(kind)), data.draw(st.from_type(kind))
    names = data.draw(st.sets(st.sampled_from([field.name for field in fields(kind)]), max_size=3))
    new = replace(old, **{name: getattr(other, name) for name in names})
    document = _through_bson(encode(old))
    changed = changes(new, since=old)
    assert {path.split(".")[0] for path in changed} <= names
    for path, content in _through_bson({"set": [list(item) for item in changed.items()]})["set"]:
        _set(document, path.split("."), content)
    assert decode(kind, document) == new
    assert changes(old, since=old) == {}


def _set(document: dict[str, Any], path: list[str], content: object) -> None:
    """As the database does it."""
    *parents, last = path
    for parent in parents:
        document = document.setdefault(parent, {})
    document[last] = content


FULL = a_turn(
    a_session_key(session_id="s"),
    error=ErrorDetail(
        code=Code.LLM_TIMEOUT, message="m", retry_after=timedelta(milliseconds=1), metadata={"a.$b": "", "": "x"}
    ),
    answer=(Part(text="hello"), Part(text="")),
    pending=(PendingItem(approval_id="a", tool_call_id="c", tool="t"),),
)


def test_the_form_in_the_database() -> None:
    """Changing it needs a new schema number: other versions read it."""
    document = encode(FULL)
    assert document["state"] == "PENDING"
    assert document["usage"] == {"input_tokens": 0, "output_tokens": 0, "model_calls": 0, "tool_calls": 0}
    assert document["error"] == {
        "code": 8,
        "message": "m",
        "retry_after": 1,
        "metadata": [{"k": "a.$b", "v": ""}, {"k": "", "v": "x"}],
    }
    assert document["answer"] == [{"text": "hello"}, {"text": ""}]
    assert document["finish_reason"] is None
    assert decode(Turn, _through_bson(document)) == FULL


@pytest.mark.parametrize(
    "value",
    [a_session(a_session_key(session_id="s")), FULL, a_call(a_session_key()), an_approval(a_session_key()), AGENT],
    ids=type,
)
def test_unknown_fields_are_ignored_and_missing_ones_take_their_default(value: Any) -> None:
    document = encode(value) | {"newer": [1], "schema": 2}
    assert decode(type(value), document) == value
    optional = [member for member in fields(value) if member.default is not member.default_factory]
    for member in optional:
        older = {name: content for name, content in document.items() if name != member.name}
        default = member.default_factory() if callable(member.default_factory) else member.default
        assert decode(type(value), older) == replace(value, **{member.name: default})


def test_a_missing_field_without_default_is_named() -> None:
    document = encode(FULL)
    del document["message_id"]
    with pytest.raises(UnreadableDocument) as raised:
        decode(Turn, document)
    assert "Turn lacks message_id" in str(raised.value.__cause__)


NEWER: dict[str, Any] = {"state": "PONDERING", "finish_reason": "BORED", "error": {"code": 9_999, "message": "m"}}


def test_i17_a_value_that_only_a_newer_version_knows_is_unspecified() -> None:
    turn = decode(Turn, _through_bson(encode(FULL) | NEWER))
    assert (turn.state, turn.finish_reason) == ("UNSPECIFIED", "UNSPECIFIED")
    assert turn.error is not None
    assert (turn.error.code, turn.error.code.name) == (0, "UNSPECIFIED")
    assert turn.state not in TurnState
    assert not any((turn.state.ended, turn.state.moving, turn.state.awaits_answers))
    assert turn.state is decode(Turn, encode(FULL) | NEWER).state


@pytest.mark.parametrize("name", NEWER)
def test_i17_what_a_decision_rests_on_has_no_unspecified_value(name: str) -> None:
    document = encode(FULL) | {name: NEWER[name], "schema": 2}
    with pytest.raises(UnreadableDocument) as raised:
        decode(Turn, document, strict=True)
    assert (raised.value.collection, raised.value.schema) == ("turns", "2")
    assert decode(Turn, encode(FULL), strict=True) == FULL


def test_i17_a_value_that_only_a_newer_version_knows_is_never_overwritten_or_copied() -> None:
    turn = replace(decode(Turn, encode(FULL) | NEWER), attempt=7, error=None)
    changed = changes(turn)
    assert changed["attempt"] == 7
    assert not changed.keys() & {"state", "finish_reason"}
    with pytest.raises(UnreadableDocument):
        encode(turn)


@pytest.mark.parametrize(
    "newer", [{"usage": 5}, {"pending": None}, {"state": ["RUNNING"]}, {"error": [1]}, {"options": {"client_tools": 1}}]
)
def test_i17_another_form_of_a_field_makes_the_document_unreadable(newer: dict[str, Any]) -> None:
    with pytest.raises(UnreadableDocument):
        decode(Turn, encode(FULL) | newer)


def test_what_has_no_form_is_refused() -> None:
    @dataclass(frozen=True)
    class Strange:
        content: complex = field(default=1j)

    with pytest.raises(TypeError, match="no BSON form"):
        encode(Strange())
