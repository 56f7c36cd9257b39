"""The scene of operators: what one does in others' sessions is on record with it, and only in its own tenant."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio
from pymongo import AsyncMongoClient

from tests.chaos.points.caller import Caller
from tests.chaos.points.stage import Stage
from tests.checker.compare import differences
from tests.e2e.support.faults import not_answered
from tests.harness import Stubs
from tests.identities import connect_as, row, settings_of
from turnkeeper.pb.v1 import chat_pb2, operator_pb2, session_pb2

OWNER, OPERATOR, STRANGER = "acme/anna", "acme/olga", "other/zoe"
ROLES: Final = {OWNER: ["caller"], OPERATOR: ["operator"], STRANGER: ["operator"]}
WAITS: Final = 10
"""Seconds until the turn of each session waits for its approval."""

Act = Callable[[Stubs, chat_pb2.Turn], Awaitable[Any]]


async def _suspend(stubs: Stubs, turn: chat_pb2.Turn) -> None:
    await stubs.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id=turn.session_id))


async def _rename(stubs: Stubs, turn: chat_pb2.Turn) -> None:
    session = session_pb2.Session(session_id=turn.session_id, title="Olga's")
    await stubs.sessions.UpdateSession(
        session_pb2.UpdateSessionRequest(session=session, update_mask=FieldMask(paths=["title"]))
    )


async def _cancel(stubs: Stubs, turn: chat_pb2.Turn) -> None:
    await stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id))


async def _cancel_by_number(stubs: Stubs, turn: chat_pb2.Turn) -> None:
    where = operator_pb2.TurnFilter(session_id=turn.session_id)
    await stubs.operator.CancelTurns(operator_pb2.CancelTurnsRequest(tenant="acme", filter=where, expected_count=1))


async def _end(stubs: Stubs, turn: chat_pb2.Turn) -> None:
    await stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=turn.session_id))


ACTS: Final[Mapping[str, tuple[Act, str]]] = {
    "suspend_session": (_suspend, "session_suspended"),
    "update_session": (_rename, "session_updated"),
    "cancel_turn": (_cancel, "turn_cancelled"),
    "cancel_turns": (_cancel_by_number, "turn_cancelled"),
    "end_session": (_end, "session_ended"),
}
"""By their names: what an operator does, and the event of it."""


async def in_others_sessions(stage: Stage) -> Sequence[str]:
    """Has a stranger try each act, then the operator; in a second session while no record can be stored."""
    with tempfile.TemporaryDirectory(prefix="turnkeeper-mutant-operators-") as folder:
        rows = [row(name.partition("/")[2], tenant=name.partition("/")[0], roles=ROLES[name]) for name in ROLES]
        named = settings_of(Path(folder), *rows).items()
        flags = [part for name, value in named for part in (f"--{name.replace('_', '-')}", str(value))]
        served = replace(stage, flags=(*stage.flags, *flags, "--operation-time", "1s"))
        async with (
            served.server() as server,
            connect_as(server.address, OWNER) as owner,
            connect_as(server.address, OPERATOR) as operator,
            connect_as(server.address, STRANGER) as stranger,
        ):
            complaints = [line for name in ACTS for line in await _acted(name, owner, operator, stranger)]
            turns = {name: await _waiting(owner, f"{name}-unrecorded") for name in ACTS}
            async with not_answered(stage.mongo_uri, "insert", collection=f"{stage.database}.audit_records"):
                await asyncio.gather(*(_succeeds(act, operator, turns[name]) for name, (act, _) in ACTS.items()))
    return [*complaints, *await _unrecorded(stage), *await differences(stage.mongo_uri, stage.database)]


async def _acted(name: str, owner: Stubs, operator: Stubs, stranger: Stubs) -> Sequence[str]:
    act, _ = ACTS[name]
    turn = await _waiting(owner, name)
    complaints = []
    if await _succeeds(act, stranger, turn):
        complaints.append(f"stranger: an operator of another tenant was let through: {name}")
    elif not await _succeeds(act, operator, turn):
        complaints.append(f"operator: was refused: {name}")
    return complaints


async def _waiting(owner: Stubs, session: str) -> chat_pb2.Turn:
    """Returns the turn of a new session, which waits for an approval."""
    caller = Caller(owner)
    await caller.create("asks", session)
    return await caller.turn(session, await caller.send(session, f"act {session}", request_id="act"), wait=WAITS)


async def _succeeds(act: Act, stubs: Stubs, turn: chat_pb2.Turn) -> bool:
    with contextlib.suppress(aio.AioRpcError):
        await act(stubs, turn)
        return True
    return False


async def _unrecorded(stage: Stage) -> Sequence[str]:
    """Returns a complaint for each changeset with an operator's act that has no record in the operator's name."""
    async with AsyncMongoClient[dict[str, Any]](stage.mongo_uri) as client:
        stored = client[stage.database]
        events = await stored["events"].find().sort("seq").to_list()
        records = await stored["audit_records"].find({"session_id": {"$gt": ""}}).to_list()
    by_event = {(record["session_id"], record["seq"]): json.loads(record["text"]) for record in records}
    changesets: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        changesets.setdefault(event["step_id"], []).append(event)
    complaints = []
    for changeset in changesets.values():
        acts = {event["kind"] for event in changeset} & {kind for _, kind in ACTS.values()}
        session_id = changeset[0]["session_id"]
        record = next((by_event[at] for event in changeset if (at := (session_id, event["seq"])) in by_event), None)
        where = f"{', '.join(sorted(acts))} of {session_id}"
        if acts and record is None:
            complaints.append(f"record: none of {where}")
        elif acts and record and (record["principal"], record["credential_id"].split()[-1]) != ("olga", OPERATOR):
            complaints.append(f"record: of {where} it names {record['principal']!r}")
    return complaints
