"""Stores sessions that would take hours to talk: their events and turns, as the service stores them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pymongo.database import Database

from turnkeeper.domain.event import (
    MessageCompleted,
    MessageReceived,
    NewEvent,
    Payload,
    SessionActivated,
    TurnCompleted,
    TurnStarted,
)
from turnkeeper.domain.message import FinishReason, Part, ToolRequest, Usage
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolOutcome
from turnkeeper.domain.tool_events import ToolCalled, ToolReturned, ToolStarted
from turnkeeper.domain.turn import StopReason, Turn, TurnOptions, TurnState
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.documents import SCHEMA, encode
from turnkeeper.store.mongo.events import event_document, numbered

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)


def prolong(database: Database[dict[str, Any]], session_id: str, *, turns: int, calls: int = 0, text: str = "x") -> int:
    """Adds whole turns to a session that has no message yet; each has so many tool calls in its first answer.

    Returns the number of the last event.
    """
    key = SessionKey("default", session_id)
    session = database["sessions"].find_one(keys.where(keys.of_session(key)))
    assert session is not None
    events: list[tuple[str, Payload]] = [("", SessionActivated(title="Long"))]
    documents: list[dict[str, Any]] = []
    first = 2
    for number in range(turns):
        turn = Turn(
            id=f"turn-{number}",
            tenant=key.tenant,
            session_id=session_id,
            principal="default",
            agent=session["agent"],
            agent_version=session["agent_version"],
            state=TurnState.COMPLETED,
            message_id=f"question-{number}",
            next_message_id=f"answer-{number}",
            options=TurnOptions(),
            first_sequence=first + len(events),
            create_time=NOW,
            update_time=NOW,
            end_time=NOW,
            answer=(Part(text=text),),
            stop_reason=StopReason.FINISHED,
        )
        documents.append({"_id": keys.of_member(key, turn.id), **encode(turn), "schema": SCHEMA})
        events.extend((turn.id, payload) for payload in _turn(number, calls=calls, text=text))
    stored = [
        numbered(WireCodec(), session_id, NewEvent(payload=payload, at=NOW, turn_id=turn_id, attempt=1), sequence)
        for sequence, (turn_id, payload) in enumerate(events, first)
    ]
    database["events"].insert_many(
        [event_document(event, key=key, changeset_id="long", fence=0, at=NOW) for event in stored]
    )
    database["turns"].insert_many(documents)
    last = stored[-1].sequence
    its = keys.where(keys.of_session(key))
    database["heads"].update_one(its, {"$set": {"last_seq": last}, "$inc": {"revision": 1}})
    database["sessions"].update_one(its, {"$set": {"state": "ACTIVE"}})
    return last


def _turn(number: int, *, calls: int, text: str) -> Iterator[Payload]:
    yield MessageReceived(message_id=f"question-{number}", content=(Part(text=text),), principal="default")
    yield TurnStarted(message_id=f"answer-{number}")
    ids = [f"call-{number}-{place}" for place in range(calls)]
    if ids:
        requests = tuple(ToolRequest(tool_call_id=call, tool="add", arguments_json="{}") for call in ids)
        yield _message(f"calls-{number}", requests=requests, finish=FinishReason.TOOL_CALLS)
    for call in ids:
        yield ToolCalled(
            tool_call_id=call,
            tool="add",
            arguments_json="{}",
            arguments_hash="hash",
            action=PolicyAction.AUTO,
            tool_class=ToolClass.READ_ONLY,
            message_id=f"calls-{number}",
        )
    for call in ids:
        yield ToolStarted(tool_call_id=call, tool="add", key=call)
        yield ToolReturned(tool_call_id=call, tool="add", outcome=ToolOutcome.OK, result_json="3", started=True)
    yield _message(f"answer-{number}", text=text)
    yield TurnCompleted(stop_reason=StopReason.FINISHED, usage=Usage(), message_id=f"answer-{number}")


def _message(
    message_id: str,
    *,
    text: str = "",
    requests: tuple[ToolRequest, ...] = (),
    finish: FinishReason = FinishReason.STOP,
) -> MessageCompleted:
    content = (Part(text=text),) if text else ()
    return MessageCompleted(
        message_id=message_id, content=content, tool_requests=requests, finish_reason=finish, usage=Usage(), model="m"
    )
