"""Compares the documents of a database with the fold of its logs (promise I11)."""

from collections.abc import Iterator, Mapping
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase

from tests.checker.fold import fold
from tests.checker.times import with_times
from tests.checker.trimmed import trimmed
from tests.checker.values import BrokenLog, Folded, FoldedTurn
from tests.checker.votes import stored_votes
from turnkeeper.codes import Code
from turnkeeper.domain.approval import hash_with_late_result
from turnkeeper.pb.v1 import event_pb2

Document = Mapping[str, Any]
Owned = dict[tuple[str, str], list[Document]]
_WAITING = ("AWAITING_APPROVAL", "AWAITING_OUTCOME", "AWAITING_TOOL")
_MEMBERS = ("turns", "tool_calls", "approvals", "requests")


async def differences(mongo_uri: str, database: str) -> list[str]:
    """Returns a line for each difference. It reads one snapshot, so that the service may be running."""
    async with (
        AsyncMongoClient[dict[str, Any]](mongo_uri) as client,
        client.start_session(snapshot=True) as session,
    ):
        return [line async for line in _differences(client[database], session)]


async def check(mongo_uri: str, database: str) -> None:
    """Raises AssertionError with the differences, if there are any."""
    lines = await differences(mongo_uri, database)
    assert not lines, "\n".join(lines)


async def _differences(database: AsyncDatabase[dict[str, Any]], session: AsyncClientSession) -> Any:
    events = await _by_session(database, session, "events", sort=[("seq", 1)])
    heads = {_of(head): head for head in await database.heads.find(session=session).to_list()}
    sessions = {_of(document["_id"]): document for document in await database.sessions.find(session=session).to_list()}
    members = {name: await _by_session(database, session, name) for name in _MEMBERS}
    purging = {key for key, head in heads.items() if head.get("purging")}
    for key in sorted(
        {*events, *heads, *sessions, *(owner_key for owned in members.values() for owner_key in owned)} - purging
    ):
        if key in heads and "forking" in heads[key]:
            for line in _not_yet(key, heads[key], events.get(key, []), sessions.get(key), members):
                yield line
            continue
        if key not in heads or key not in sessions or key not in events:
            yield f"{key}: its session, head or log is not there"
            continue
        mine = {name: owned.get(key, []) for name, owned in members.items()}
        for line in of_session(heads[key], sessions[key], events[key], mine):
            yield f"{key[1]}: {line}"


def _not_yet(
    key: tuple[str, str], head: Document, events: list[Document], session: Document | None, members: Mapping[str, Owned]
) -> Iterator[str]:
    """Yields differences of an unfinished fork: it has the beginning of a log, and no document."""
    if [event["seq"] for event in events] != list(range(1, head["last_seq"] + 1)):
        yield f"{key}: the fork's copy has a gap"
    if session or any(key in owned for owned in members.values()):
        yield f"{key}: the fork is visible before it is whole"


async def _by_session(
    database: AsyncDatabase[dict[str, Any]], session: AsyncClientSession, name: str, **how: Any
) -> Owned:
    owned: Owned = {}
    async for document in database[name].find({}, session=session, **how):
        owned.setdefault(_of(document), []).append(document)
    return owned


def _of(document: Document) -> tuple[str, str]:
    return document["tenant"], document["session_id"]


def of_session(
    head: Document, session: Document, events: list[Document], members: Mapping[str, list[Document]]
) -> Iterator[str]:
    """Yields the differences of one session. `members`: its turns, calls, approvals and requests, by collection."""
    if head.get("compacted_to", 0):
        yield from trimmed(head, session, events, members)
        return
    yield from _log(events, head)
    try:
        folded = fold(event_pb2.Event.FromString(event["payload"]) for event in events)
    except (BrokenLog, KeyError, ValueError) as broken:
        yield f"its log is broken: {broken}"
        return
    yield from _hidden(head, session, folded, members["approvals"])
    yield from _head(head, folded, {turn["id"]: turn["state"] for turn in members["turns"]})
    yield from _session(session, folded)
    yield from _turns(members["turns"], folded)
    yield from _calls(members["tool_calls"], folded)
    yield from _approvals(members["approvals"], folded)
    yield from _requests(members["requests"], folded)


def _hidden(head: Document, session: Document, folded: Folded, approvals: list[Document]) -> Iterator[str]:
    """Yields differences in suspension and deletion, which the head repeats, and in the clocks of approvals."""
    stored = (head.get("suspended", False), head.get("deleted_at") is not None, session.get("delete_time") is not None)
    if stored != (folded.state == "SUSPENDED", folded.deleted, folded.deleted):
        yield f"head and session are suspended, deleted, deleted: {stored}, log {folded.state}, {folded.deleted}"
    for approval in approvals:
        if approval.get("time_left") is not None and approval["state"] == "PENDING" and folded.state != "SUSPENDED":
            yield f"approval {approval['id']} does not expire, and its session is {folded.state}"


def _log(events: list[Document], head: Document) -> Iterator[str]:
    """Yields differences between stored fields and payloads, and in the order of fences."""
    fence = 0
    for number, event in enumerate(events, 1):
        payload = event_pb2.Event.FromString(event["payload"])
        kind = payload.WhichOneof("payload") or (event["kind"] if payload.ignorable else None)
        stored = (event["seq"], event["kind"], event["turn_id"], event["session_id"])
        if stored != (payload.sequence, kind, payload.turn_id, payload.session_id) or payload.sequence != number:
            shown = f"{payload.sequence}, {payload.WhichOneof('payload')}"
            yield f"event {number} is stored as {stored}, its payload is {shown}"
        if event["fence"] < fence:
            yield f"event {number} was written under fence {event['fence']}, after {fence}"
        fence = event["fence"]
    if head["fence"] < fence:
        yield f"the head's fence is {head['fence']}, its log's {fence}"


def _head(head: Document, folded: Folded, states: Mapping[str, str]) -> Iterator[str]:
    stored = (head["last_seq"], head["active_turn"], head["queue"])
    if stored != (folded.last_seq, folded.active, folded.queue):
        yield f"head {stored}, log {(folded.last_seq, folded.active, folded.queue)}"
    if head["cancel"]["turn_id"] not in ("", folded.active):
        yield f"a wish to cancel {head['cancel']['turn_id']}, which is not active"
    if bool(head["owner"]) != (head["lease_until"] is not None):
        yield f"owner {head['owner']!r} with a lease until {head['lease_until']}"
    if not folded.active and (head["owner"] or head["wake_at"]):
        yield "an owner or a wake-up without an active turn"
    if not folded.active and head.get("needs", 0):
        yield "a need for a newer version without an active turn"
    if head["owner"] and states.get(folded.active) not in ("PENDING", "RUNNING", "BACKING_OFF", *_WAITING):
        yield f"owned, while its turn is {states.get(folded.active)}"


def _session(document: Document, folded: Folded) -> Iterator[str]:
    labels = {label["k"]: label["v"] for label in document["labels"]}
    expected = {
        "state": folded.state,
        "agent": folded.agent,
        "agent_version": folded.agent_version,
        "owner": folded.owner,
        "title": folded.title,
        "usage": folded.usage,
        "unknown": [{"tool": folded.calls[call_id].tool, "tool_call_id": call_id} for call_id in folded.unknown],
    }
    expected = {name: value for name, value in expected.items() if name not in folded.changed}
    yield from _unequal("session", document, expected)
    remembered = {item["approval_id"]: (item["binding"], item["uses_left"]) for item in document.get("remembered", [])}
    if list(remembered.items()) != list(reversed(folded.remembered.items())):
        yield f"session: it remembers {remembered}, log {folded.remembered}"
    if document.get("restored") != folded.restored:
        yield f"session: restored is {document.get('restored')}, log {folded.restored}"
    labels = folded.labels if "labels" in folded.changed else labels
    if labels != folded.labels or (document["end_time"] is not None) != (folded.state == "ENDED"):
        yield "session: its labels or its end are not those of the log"


def _turns(documents: list[Document], folded: Folded) -> Iterator[str]:
    by_id = {document["id"]: document for document in documents}
    if by_id.keys() != folded.turns.keys():
        yield f"turns {sorted(by_id)}, log {sorted(folded.turns)}"
    for turn_id in by_id.keys() & folded.turns.keys():
        yield from _turn(by_id[turn_id], folded.turns[turn_id], folded)


def _turn(document: Document, turn: FoldedTurn, folded: Folded) -> Iterator[str]:
    name = f"turn {document['id']}"
    expected: dict[str, Any] = {
        "first_sequence": turn.first_sequence,
        "message_id": turn.message_id,
        "principal": turn.principal,
        "usage": turn.usage,
        "iterations": turn.iterations,
        "caused_by": turn.caused_by,
    }
    document = {"caused_by": [], **document}  # an older version does not have it
    if turn.end == "COMPLETED":
        expected["stop_reason"] = turn.stop_reason
    yield from _unequal(name, document, expected)
    if document["state"] not in folded.states_of(document["id"]):
        yield f"{name} is {document['state']}, log {sorted(folded.states_of(document['id']))}"
    if document["attempt"] < turn.attempt:
        yield f"{name} is in attempt {document['attempt']}, log {turn.attempt}"
    if (document["end_time"] is not None) != bool(turn.end):
        yield f"{name}: end_time {document['end_time']}, log {turn.end or 'no end'}"
    if turn.end == "COMPLETED" and "".join(part["text"] for part in document["answer"]) != turn.answer:
        yield f"{name}: its answer is not its last message"
    if turn.end == "FAILED" and Code(document["error"]["code"]) != turn.error_code:
        yield f"{name}: error {document['error']['code']}, log {turn.error_code}"
    waiting = {(item["approval_id"], item["tool_call_id"]) for item in document["pending"]}
    if waiting != (folded.awaited(document["id"]) if document["state"] in _WAITING else set()):
        yield f"{name} is {document['state']} and waits for {waiting}, log {folded.awaited(document['id'])}"


def _calls(documents: list[Document], folded: Folded) -> Iterator[str]:
    by_id = {document["id"]: document for document in documents}
    if by_id.keys() != folded.calls.keys():
        yield f"calls {sorted(by_id)}, log {sorted(folded.calls)}"
    for call_id in by_id.keys() & folded.calls.keys():
        document, call = by_id[call_id], folded.calls[call_id]
        expected = {
            "turn_id": call.turn_id,
            "tool": call.tool,
            "arguments_json": call.arguments_json,
            "arguments_hash": call.arguments_hash,
            "outcome": call.outcome or None,
            "started": bool(call.key) or call.requested,
            "sequence": call.sequence,
            "round": call.rounds,
            "unsettled": call.unsettled,
        }
        yield from _unequal(f"call {call_id}", document, expected)
        again = call.state == "STARTED" and not call.irreversible
        if document["state"] != call.state and not (again and document["state"] == "READY"):
            yield f"call {call_id} is {document['state']}, log {call.state}"
        if call.key and document["key"] != call.key:
            yield f"call {call_id} has the key {document['key']}, log {call.key}"


def _approvals(documents: list[Document], folded: Folded) -> Iterator[str]:
    by_id = {document["id"]: document for document in documents}
    if by_id.keys() != folded.approvals.keys():
        yield f"approvals {sorted(by_id)}, log {sorted(folded.approvals)}"
    for approval_id in by_id.keys() & folded.approvals.keys():
        approval = folded.approvals[approval_id]
        expected = {name: getattr(approval, name) for name in approval.__slots__}
        stored = {"remembered_from": "", **by_id[approval_id]}  # an older version has no such field
        document = {**with_times(stored), "votes": stored_votes(stored)}
        document["exclude_requester"] = document.get("approvers", {}).get("exclude_requester", True)
        read = hash_with_late_result(approval.arguments_hash, document["late_result_json"])
        if approval.kind == "OUTCOME" and document["arguments_hash"] == read:
            expected["arguments_hash"] = read
        yield from _unequal(f"approval {approval_id}", document, expected)


def _requests(documents: list[Document], folded: Folded) -> Iterator[str]:
    for document in documents:
        if document["family"] in ("fork_session", "restore_checkpoint"):
            continue
        turn = folded.turns.get(document["turn_id"])
        if turn is None or (document["family"] == "message" and document["sequence"] != turn.first_sequence):
            yield f"request {document['request_id']} names turn {document['turn_id']}, event {document['sequence']}"


def _unequal(name: str, document: Document, expected: Mapping[str, Any]) -> Iterator[str]:
    for field, value in expected.items():
        if document[field] != value:
            yield f"{name}: {field} is {document[field]!r}, log {value!r}"
