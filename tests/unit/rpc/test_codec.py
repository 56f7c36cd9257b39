"""Every field survives encoding and decoding; a field that one side lacks is named with its reason."""

import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import chain
from typing import Any, get_args, get_type_hints

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import AGENT, NOON, a_head, a_session, a_session_key, a_turn, an_approval, an_event
from tests.unit.rpc.message_pairs import LATER_EVENTS, PAIRS, PREVIEWS, Pair, values_of
from turnkeeper.codes import Code, ErrorDetail, Family
from turnkeeper.domain.agent import AgentLimits
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.event import KINDS, AttemptFailed, AttemptOutcome, NewEvent, TurnFailed, UnknownPayload, kind_of
from turnkeeper.domain.message import Message, Part, Usage
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.session import SessionState
from turnkeeper.domain.tool import PolicyAction
from turnkeeper.domain.turn import PendingItem, StopReason, TurnState
from turnkeeper.errors_by_code import error_of
from turnkeeper.pb.v1 import chat_pb2, error_pb2, event_pb2, message_pb2, session_pb2
from turnkeeper.rpc import codec, wire
from turnkeeper.rpc.codec import WireCodec, enum_value
from turnkeeper.rpc.status import details_bytes
from turnkeeper.rpc.views import agent_view, approval_view, session_view, turn_view
from turnkeeper.store.changeset import StoredEvent

CODEC = WireCodec()
PLACE = a_session_key(session_id="s")
ANYBODY = {"k": 1, "exclude_requester": True, "veto": True, "remember": True}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.message.name)
def test_both_sides_have_the_same_fields(pair: Pair) -> None:
    ours = {pair.rename.get(field.name, field.name) for field in fields(pair.kind)}
    theirs = {field.name for field in pair.message.fields}
    assert theirs - ours == set(pair.only_proto)
    assert ours - theirs == pair.only_ours


def test_every_event_of_the_proto_is_sent_or_named_as_a_later_one() -> None:
    payloads = {field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
    assert payloads == set(KINDS) | LATER_EVENTS | PREVIEWS
    assert not set(KINDS) & (LATER_EVENTS | PREVIEWS)


@settings(max_examples=20)
@given(st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_every_event_survives_encoding_and_decoding(kind: str, data: st.DataObject) -> None:
    event = data.draw(
        st.builds(
            NewEvent,
            payload=values_of(KINDS[kind]),
            at=values_of(datetime),
            turn_id=st.text(max_size=5),
            attempt=st.integers(0, 9),
        )
    )
    sequence = data.draw(st.integers(1, 2**63 - 1))
    payload = CODEC.number(CODEC.encode("s", event), sequence)
    decoded = CODEC.decode(StoredEvent(sequence=sequence, kind=kind, turn_id=event.turn_id, payload=payload))
    assert decoded.payload == event.payload
    assert (decoded.sequence, decoded.turn_id, decoded.attempt) == (sequence, event.turn_id, event.attempt)
    assert decoded.create_time == event.at


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_without_any_value_is_still_of_its_kind(kind: str) -> None:
    assert kind_of(KINDS[kind]) == kind
    event = event_pb2.Event.FromString(CODEC.encode("s", an_event(payload=_least(KINDS[kind]))))
    assert event.WhichOneof("payload") == kind
    ignorable = {"approval_expiring", "approval_extended", "approval_voted", "remembered_decision", "tool_reconciled"}
    assert event.ignorable is (kind in ignorable), "what they lead to is an event of its own"


def _least(kind: Any) -> Any:
    """Returns the value whose fields are all empty."""
    return kind(**{name: _empty(annotation) for name, annotation in get_type_hints(kind).items()})


def _empty(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return next(iter(annotation))
    if annotation is datetime:
        return datetime(1970, 1, 1, tzinfo=UTC)
    if annotation in (str, int, bool):
        return annotation()
    if get_args(annotation):
        return None if type(None) in get_args(annotation) else () if annotation.__name__ == "tuple" else {}
    return _least(annotation)


def test_a_kind_of_a_later_release_is_refused() -> None:
    payload = event_pb2.Event(session_expired=event_pb2.SessionExpired()).SerializeToString()
    with pytest.raises(ValueError, match="event 3 is a session_expired, which this version does not know"):
        CODEC.decode(StoredEvent(sequence=3, kind="session_expired", turn_id="", payload=payload))


def test_a_payload_of_a_newer_version_is_sent_as_it_is_and_may_be_ignored() -> None:
    raw = b"\x9a\x06\x04text"
    event = event_pb2.Event.FromString(
        CODEC.encode("s", NewEvent(payload=UnknownPayload(kind="newer", raw=raw), at=NOON))
    )
    assert event.ignorable
    assert event.WhichOneof("payload") is None
    assert raw in event.SerializeToString()


ERROR = ErrorDetail(code=Code.LLM_RATE_LIMIT, message="Wait.", retry_after=timedelta(seconds=2), metadata={"a": "1"})


@pytest.mark.parametrize(
    "payload",
    [
        TurnFailed(error=ERROR, usage=Usage()),
        AttemptFailed(error=ERROR, outcome=AttemptOutcome.RETRYING, retry_delay=timedelta(seconds=1)),
    ],
)
def test_an_error_inside_an_event_names_its_turn_and_the_retry_advice(payload: TurnFailed | AttemptFailed) -> None:
    event = event_pb2.Event.FromString(CODEC.encode("s", an_event(payload=payload, turn_id="t")))
    error = getattr(event, kind_of(type(payload))).error
    assert (error.session_id, error.turn_id) == ("s", "t")
    assert error.retry == error_pb2.RETRY_ADVICE_RETRY_TURN
    assert (error.code, error.message, dict(error.metadata)) == (Code.LLM_RATE_LIMIT, "Wait.", {"a": "1"})


@given(st.integers(0, 2**63 - 1))
def test_an_appended_number_is_the_events_sequence(number: int) -> None:
    without = CODEC.encode("s", an_event("hello"))
    assert event_pb2.Event.FromString(without).sequence == 0
    assert event_pb2.Event.FromString(CODEC.number(without, number)).sequence == number
    assert len(wire.VARINTS[number]) <= 9


@given(st.lists(st.text(max_size=300), max_size=4), st.text(max_size=10), st.integers(0, 9), st.booleans())
def test_a_batch_of_bytes_is_the_message_that_protobuf_would_make(
    texts: list[str], cursor: str, through: int, caught_up: bool
) -> None:
    events = [CODEC.number(CODEC.encode("s", an_event(text)), n) for n, text in enumerate(texts, start=1)]
    data = wire.response(events, cursor=cursor.encode(), through=through, caught_up=caught_up)
    for kind in (session_pb2.WatchEventsResponse, chat_pb2.StreamMessageResponse):
        parsed = [event_pb2.Event.FromString(event) for event in events]
        whole = kind(events=parsed, cursor=cursor, through_sequence=through, caught_up=caught_up)
        assert kind.FromString(data) == whole


@given(st.text(max_size=300), st.integers(0, 2**63 - 1), st.integers(0, 300), st.booleans())
def test_a_delta_is_a_preview(text: str, offset: int, attempt: int, restarts: bool) -> None:
    delta = event_pb2.ContentDelta(
        message_id="m", attempt=attempt, offset=offset, kind=event_pb2.DELTA_KIND_TEXT, text=text, restarts=restarts
    )
    whole = event_pb2.Event(session_id="s", turn_id="t", attempt=attempt, content_delta=delta)
    data = CODEC.delta(
        "s", turn_id="t", message_id="m", attempt=attempt, offset=offset, text=text.encode(), restarts=restarts
    )
    assert event_pb2.Event.FromString(data) == whole


def test_the_text_of_a_stored_message() -> None:
    parts = [message_pb2.Part(text="hé"), message_pb2.Part(text="llo")]
    stored = event_pb2.Event(attempt=3, message_completed=event_pb2.MessageCompleted(message_id="m", content=parts))
    stored.message_completed.finish_reason = message_pb2.FINISH_REASON_STOP
    assert CODEC.message_text(stored.SerializeToString()) == ("m", 3, "héllo".encode())


ENUMS = {
    (pair.kind, name): (enum, descriptor)
    for pair in PAIRS
    for name, annotation in get_type_hints(pair.kind).items()
    for enum in chain((annotation,), get_args(annotation))
    if isinstance(enum, type) and issubclass(enum, Enum) and enum is not Code
    for descriptor in [pair.message.fields_by_name.get(pair.rename.get(name, name))]
    if descriptor is not None
}


@pytest.mark.parametrize("where", ENUMS, ids=lambda where: f"{where[0].__name__}.{where[1]}")
def test_both_sides_have_the_same_names_in_their_enums(where: tuple[Any, str]) -> None:
    enum, field = ENUMS[where]
    descriptor: EnumDescriptor = field.enum_type
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in descriptor.name).lstrip("_") + "_"
    assert {f"{prefix}{member.value}" for member in enum} == set(descriptor.values_by_name) - {f"{prefix}UNSPECIFIED"}
    assert all(descriptor.values_by_number[enum_value(field, member)].name == prefix + member.value for member in enum)


READ_BACK = [where for where in ENUMS if where[0] in KINDS.values()]
"""The enums of events: they alone become values again."""


@pytest.mark.parametrize("where", READ_BACK, ids=lambda where: f"{where[0].__name__}.{where[1]}")
@pytest.mark.parametrize("number", [0, 99])
def test_i17_a_number_that_only_a_newer_version_knows_is_unspecified(where: tuple[Any, str], number: int) -> None:
    kind, name = where
    message = getattr(event_pb2.Event(), kind_of(kind))
    setattr(message, name, number)
    value = codec.read(kind, message)
    assert (getattr(value, name), getattr(value, name).name) == ("UNSPECIFIED", "UNSPECIFIED")
    codec.fill(message, value)
    assert getattr(message, name) == 0


def test_i17_a_failure_with_a_code_of_a_newer_version_is_shown_as_one_that_another_attempt_may_mend() -> None:
    message = error_pb2.SessionErrorDetail(message="Wait.")
    message.code = 9_999  # type: ignore[assignment]
    detail = codec.read(ErrorDetail, message)
    assert (detail.code, detail.code.name) == (0, "UNSPECIFIED")
    turn = a_turn(PLACE, state=TurnState.FAILED, error=detail)
    assert turn_view(turn).error.code == error_pb2.SESSION_ERROR_CODE_UNSPECIFIED
    assert turn_view(turn).error.message == "Wait."
    error = error_of(detail)
    assert (error.family, error.code.name) == (Family.ABORTED, "UNSPECIFIED")
    assert details_bytes(error.to_status())


HEAD = a_head(PLACE, last_seq=9, active_turn="t", queue=("u", "v"))
AT = "2026-01-02T12:00:00Z"
USAGE = Usage(input_tokens=1, output_tokens=2, model_calls=3, tool_calls=4)
USED = {"input_tokens": "1", "output_tokens": "2", "model_calls": "3", "tool_calls": "4"}


def as_dict(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def test_a_whole_session() -> None:
    session = a_session(
        PLACE, state=SessionState.ENDED, title="T", labels={"a": "b"}, usage=USAGE, end_time=NOON, etag="e"
    )
    assert as_dict(session_view(replace(session, metadata_json='{"n": [1, null]}'), HEAD)) == {
        "session_id": "s",
        "agent": "assistant",
        "agent_version": AGENT.version,
        "state": "SESSION_STATE_ENDED",
        "owner": "ada",
        "title": "T",
        "labels": {"a": "b"},
        "metadata": {"n": [1.0, None]},
        "usage": USED,
        "last_sequence": "9",
        "active_turn_id": "t",
        "queued_turns": 2,
        "etag": "e",
        "create_time": AT,
        "update_time": AT,
        "end_time": AT,
    }


def test_a_whole_turn() -> None:
    turn = a_turn(
        PLACE,
        id="t",
        state=TurnState.FAILED,
        attempt=2,
        iterations=3,
        message_id="m",
        answer=(Part(text="yes"), Part(text="no")),
        usage=USAGE,
        stop_reason=StopReason.LENGTH,
        error=ERROR,
        pending=(PendingItem(approval_id="a", tool_call_id="c", tool="send"),),
        end_time=NOON,
    )
    assert as_dict(turn_view(turn)) == {
        "turn_id": "t",
        "session_id": "s",
        "state": "TURN_STATE_FAILED",
        "attempt": 2,
        "iterations": 3,
        "message_id": "m",
        "answer": [{"text": "yes"}, {"text": "no"}],
        "usage": USED,
        "stop_reason": "STOP_REASON_LENGTH",
        "error": {
            "code": "SESSION_ERROR_CODE_LLM_RATE_LIMIT",
            "message": "Wait.",
            "session_id": "s",
            "turn_id": "t",
            "retry": "RETRY_ADVICE_RETRY_TURN",
            "retry_after": "2s",
            "metadata": {"a": "1", "session_id": "s", "turn_id": "t"},
        },
        "pending": [{"approval_id": "a", "tool_call_id": "c", "tool": "send"}],
        "principal": "ada",
        "first_sequence": "2",
        "create_time": AT,
        "update_time": AT,
        "end_time": AT,
    }


def test_a_whole_approval() -> None:
    approval = an_approval(
        PLACE,
        id="a",
        tool_call_id="c",
        state=ApprovalState.REJECTED,
        expire_time=NOON,
        decide_time=NOON,
        decided_by="bob",
        reason="no",
    )
    assert as_dict(approval_view(approval)) == {
        "approval_id": "a",
        "session_id": "s",
        "turn_id": "turn",
        "tool_call_id": "c",
        "kind": "APPROVAL_KIND_TOOL_CALL",
        "state": "APPROVAL_STATE_REJECTED",
        "round": 1,
        "tool": "search_web",
        "tool_class": "TOOL_CLASS_IRREVERSIBLE",
        "arguments_json": '{"query":"weather"}',
        "arguments_hash": "hash-1",
        "requester": "ada",
        "agent": "assistant",
        **dict.fromkeys(("create_time", "expire_time", "decide_time"), AT),
        "decided_by": "bob",
        "reason": "no",
        "approvers": ANYBODY,
        **dict.fromkeys(("ttl", "longest_ttl"), "0s"),
    }


def test_a_whole_agent() -> None:
    agent = replace(
        AGENT,
        description="D",
        policy=(PolicyRule(tool="*", action=PolicyAction.NOTIFY, ttl=timedelta(minutes=1)),),
        limits=AgentLimits(max_output_tokens=5),
        base_url="http://secret",
        api_key_env="KEY",
    )
    assert as_dict(agent_view(agent)) == {
        "name": "assistant",
        "version": agent.version,
        "description": "D",
        "instructions": "Be brief.",
        "model": "small",
        "tools": ["search_*"],
        "policy": [{"tool": "*", "action": "POLICY_ACTION_NOTIFY", "ttl": "60s", "approvers": ANYBODY}],
        "limits": {
            "max_iterations": 16,
            "max_output_tokens": 5,
            "max_attempts": 4,
            "tool_timeout": "30s",
            "parallel_tools": 4,
        },
    }


@pytest.mark.parametrize(
    ("view", "pair"),
    [
        (session_view(a_session(PLACE), HEAD), PAIRS[0]),
        (turn_view(a_turn(PLACE)), PAIRS[1]),
        (approval_view(an_approval(PLACE)), PAIRS[2]),
        (agent_view(AGENT), PAIRS[3]),
    ],
    ids=lambda value: getattr(getattr(value, "message", None), "name", ""),
)
def test_a_value_that_is_not_known_stays_unset(view: Any, pair: Pair) -> None:
    optional = {name for name, annotation in get_type_hints(pair.kind).items() if type(None) in get_args(annotation)}
    unset = {field.name for field in pair.message.fields if field.has_presence and not view.HasField(field.name)}
    assert unset <= optional | set(pair.only_proto)


def test_a_models_message_and_a_listed_message_differ_in_named_fields() -> None:
    """ListMessages makes its messages from entries of the history, so that no pair covers them."""
    theirs = {field.name for field in message_pb2.Message.DESCRIPTOR.fields}
    ours = {field.name for field in fields(Message)}
    assert theirs - ours == {"content", "message_id", "turn_id", "sequence", "finish_reason", "create_time"}
    assert ours - theirs == {"text", "forms"}


def test_a_callers_json_survives() -> None:
    text = json.dumps({"a": {"b": [True, "é", 1.5]}})
    session = session_pb2.Session()
    codec.fill_struct(session.metadata, text)
    assert json_format.MessageToDict(session.metadata) == json.loads(text)
