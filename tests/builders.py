"""Valid values to start a test from. A test passes every argument that matters to it."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Approval, ApprovalKind, ApprovalState
from turnkeeper.domain.decider import Decider
from turnkeeper.domain.event import MessageReceived, NewEvent, Payload, SessionCreated
from turnkeeper.domain.message import Part
from turnkeeper.domain.session import Session, SessionKey, SessionState
from turnkeeper.domain.tool import Call, CallState, PolicyAction, ToolClass
from turnkeeper.domain.turn import Turn, TurnOptions, TurnState
from turnkeeper.store.changeset import Cancel, Head, RequestKey, RequestRecord
from turnkeeper.store.notifications import PreviewChunk

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
AGENT = Agent(name="assistant", model="small", instructions="Be brief.", tools=("search_*",))

_numbers = itertools.count(1)


def new_id(prefix: str = "id") -> str:
    """Returns an id that no other test of this run has."""
    return f"{prefix}-{next(_numbers):06d}"


def a_session_key(*, tenant: str = "default", session_id: str = "") -> SessionKey:
    return SessionKey(tenant, session_id or new_id("session"))


def a_session(session_key: SessionKey, **given: Any) -> Session:
    session = Session(
        id=session_key.session_id,
        tenant=session_key.tenant,
        owner="ada",
        agent=AGENT.name,
        agent_version=AGENT.version,
        state=SessionState.CREATED,
        fingerprint="fingerprint",
        create_time=NOON,
        update_time=NOON,
        labels={"team": "blue", "app.kubernetes.io/name": "chat"},
        etag="etag-1",
    )
    return replace(session, **given)


def a_head(session_key: SessionKey, **given: Any) -> Head:
    """Returns the head of a session without an owner and a turn, three events into its log."""
    head = Head(
        session_id=session_key.session_id,
        tenant=session_key.tenant,
        last_seq=3,
        fence=1,
        owner="",
        owned=False,
        active_turn="",
        queue=(),
        cancel=Cancel(),
        lapses=0,
        now=NOON,
    )
    return replace(head, **given)


def a_turn(session_key: SessionKey, **given: Any) -> Turn:
    turn = Turn(
        id=new_id("turn"),
        tenant=session_key.tenant,
        session_id=session_key.session_id,
        principal="ada",
        agent=AGENT.name,
        agent_version=AGENT.version,
        state=TurnState.PENDING,
        message_id=new_id("message"),
        next_message_id=new_id("message"),
        options=TurnOptions(),
        first_sequence=2,
        create_time=NOON,
        update_time=NOON,
    )
    return replace(turn, **given)


def a_lone_decider(person: str = "ada") -> Decider:
    """Returns a caller as it decides with identity `none`, where a single approver does."""
    return Decider(person=person, identified=False)


def a_call(session_key: SessionKey, **given: Any) -> Call:
    call = Call(
        id=new_id("call"),
        tenant=session_key.tenant,
        session_id=session_key.session_id,
        turn_id="turn",
        message_id="message",
        position=0,
        tool="search_web",
        arguments_json='{"query":"weather"}',
        arguments_hash="hash-1",
        tool_class=ToolClass.IRREVERSIBLE,
        action=PolicyAction.APPROVE,
        state=CallState.AWAITING,
        key=new_id("key"),
    )
    return replace(call, **given)


def an_approval(session_key: SessionKey, **given: Any) -> Approval:
    """Returns an approval that expires in an hour by this machine's clock."""
    approval = Approval(
        id=new_id("approval"),
        tenant=session_key.tenant,
        session_id=session_key.session_id,
        turn_id="turn",
        tool_call_id=new_id("call"),
        kind=ApprovalKind.TOOL_CALL,
        state=ApprovalState.PENDING,
        round=1,
        tool="search_web",
        tool_class=ToolClass.IRREVERSIBLE,
        arguments_json='{"query":"weather"}',
        arguments_hash="hash-1",
        requester="ada",
        agent=AGENT.name,
        create_time=NOON,
        expire_time=datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1),
    )
    return replace(approval, **given)


def an_event(text: str = "hello", *, payload: Payload | None = None, **given: Any) -> NewEvent:
    """Returns an event with this payload, by default a received message."""
    received = MessageReceived(message_id=new_id("message"), content=(Part(text=text),), principal="ada")
    return replace(NewEvent(payload=payload or received, at=NOON), **given)


def a_first_event() -> NewEvent:
    """Returns the event that begins a new session's log."""
    created = SessionCreated(agent=AGENT.name, agent_version=AGENT.version, owner="ada", title="")
    return NewEvent(payload=created, at=NOON)


def a_request(session_key: SessionKey, **given: Any) -> RequestRecord:
    request_key = RequestKey(
        tenant=session_key.tenant,
        session_id=session_key.session_id,
        principal="ada",
        family="message",
        request_id=new_id("request"),
    )
    return replace(RequestRecord(key=request_key, fingerprint="fingerprint", turn_id="turn", sequence=2), **given)


def a_preview_chunk(session_key: SessionKey, text: str = "hello", **given: Any) -> PreviewChunk:
    chunk = PreviewChunk(
        tenant=session_key.tenant,
        session_id=session_key.session_id,
        turn_id="turn",
        message_id="m",
        attempt=1,
        offset=0,
        text=text,
    )
    return replace(chunk, **given)
