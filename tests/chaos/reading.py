"""Reads a run's files and database into a History. Nothing is checked here, beside what tests/checker compares."""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern

from tests.chaos import tenants
from tests.chaos.effects import DONE, EFFECTS, STARTED
from tests.chaos.flood import FLOODS
from tests.chaos.history import Chain, Document, Effect, Fault, History, Logged, Prompt, Try
from tests.chaos.promises.ends import is_at_rest
from tests.chaos.record import CALLS, LOAD, STREAMS
from tests.chaos.streams import hash_of
from tests.checker.compare import differences
from turnkeeper.pb.v1 import event_pb2

PROMPTS = "model.jsonl"
_MOVING = ["PENDING", "RUNNING", "BACKING_OFF"]
_SECONDS_OF = 1e-9


async def read(uri: str, database: str, folder: Path, *, faults: Path | None, settle: float) -> History:
    """Reads the run once its turns are at rest, or after `settle` seconds. Raises OSError for a missing file."""
    load = json.loads((folder / LOAD).read_text())
    calls, streams = lines(folder / CALLS), lines(folder / STREAMS)
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        majority = client.get_database(database, read_concern=ReadConcern("majority"))
        await _settled(majority, settle)
        documents = {
            name: [_named(document) for document in await majority[name].find({}).to_list()]
            for name in ("heads", "turns", "tool_calls", "approvals")
        }
        events = await majority.events.find({}, sort=[("seq", 1)]).to_list()
        audit = [json.loads(record["text"]) for record in await majority.audit_records.find({}).to_list()]
    unfit = await differences(uri, database)
    ledger = {entry["id"]: entry for entry in documents["tool_calls"]}
    return History(
        logs=logs_of(events),
        heads={head["session_id"]: head for head in documents["heads"]},
        turns={turn["id"]: turn for turn in documents["turns"]},
        ledger=ledger,
        approvals={approval["id"]: approval for approval in documents["approvals"]},
        audit=decisions_in(audit),
        tries=[call for records in (calls, *_floods(folder)) for call in tries_of(records)],
        left=[line["turn"] for line in calls if line["line"] == "left"],
        chains=chains_of(streams),
        effects=effects_of(lines(folder / EFFECTS), ledger),
        next_messages=[_of_tenant(line) for line in calls if line["line"] == "next"],
        faults=faults_of(lines(faults)) if faults else [],
        prompts=[Prompt(messages=line["messages"]) for line in lines(folder / PROMPTS)],
        first_seen=first_seen_in(streams),
        unfit=unfit,
        until=load["over"],
    )


def decisions_in(records: Iterable[Document]) -> Mapping[str, Sequence[Document]]:
    """Returns the records of decisions, by approval."""
    decisions: dict[str, list[Document]] = {}
    for record in records:
        if record["action"] == "decide_approval":
            decisions.setdefault(record["target"], []).append(record)
    return decisions


def _floods(folder: Path) -> list[list[dict[str, Any]]]:
    """Returns the records of each flood: their calls have numbers of their own."""
    return [lines(file) for file in sorted(folder.glob(FLOODS))]


def lines(path: Path) -> list[dict[str, Any]]:
    """Returns the file's JSON lines; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _of_tenant(line: Document) -> Document:
    """Returns a line that names its session together with the tenant."""
    return {**line, "session": tenants.key(line["tenant"], line["session"])} if line.get("session") else line


def _named(document: Document) -> Document:
    """Returns a document that names its session together with the tenant."""
    return {**document, "session_id": _session(document)}


def logs_of(events: Iterable[Document]) -> Mapping[str, Sequence[Logged]]:
    """Groups stored events by session, in the order given."""
    logs: dict[str, list[Logged]] = {}
    for document in events:
        event = logged(document)
        logs.setdefault(event.session, []).append(event)
    return logs


def logged(document: Document) -> Logged:
    """Returns a stored event: its number is that of its document, its other fields those of its payload."""
    event = event_pb2.Event.FromString(document["payload"])
    return Logged(
        session=_session(document),
        sequence=document["seq"],
        kind=str(event.WhichOneof("payload")),
        turn=event.turn_id,
        fence=document["fence"],
        hash=hash_of(event),
        wall=event.create_time.ToNanoseconds() * _SECONDS_OF,
        event=event,
    )


def tries_of(calls: Iterable[Document]) -> list[Try]:
    """Returns each call with its answer, if one was recorded; also the turn that ended a stream."""
    sent: dict[int, Document] = {}
    answered: dict[int, Document] = {}
    turn_tries: list[Try] = []
    for line in map(_of_tenant, calls):
        match line["line"]:
            case "sent":
                sent[line["call"]] = line
            case "answered":
                answered[line["call"]] = line
            case "turn":
                turn_tries.append(Try(number=0, rpc="turn of a stream", request={}, answer={"status": "OK", **line}))
    return [
        Try(number=number, rpc=request["rpc"], request=request, answer=answered.get(number, {}))
        for number, request in sent.items()
    ] + turn_tries


def chains_of(streams: Iterable[Document]) -> list[Chain]:
    opened = {line["chain"]: _of_tenant(line) for line in streams if line["line"] == "chain"}
    got: dict[int, list[Document]] = {number: [] for number in opened}
    ends: dict[int, list[tuple[str, str]]] = {number: [] for number in opened}
    for line in streams:
        if line["line"] == "got":
            got[line["chain"]].append(line)
        if line["line"] == "closed":
            ends[line["chain"]].append((line["how"], line.get("message", "")))
    return [
        Chain(
            number=number,
            session=chain["session"],
            after=chain["after"],
            request=chain["request"],
            previews=chain["previews"],
            through=got[number][-1]["through"] if got[number] else chain["after"],
            items=[item for response in got[number] for item in response["items"]],
            leaked=any(response.get("leaked") for response in got[number]),
            ends=ends[number],
        )
        for number, chain in opened.items()
    ]


def effects_of(written: Sequence[Document], ledger: Mapping[str, Document]) -> list[Effect]:
    """Returns the starts alone: a tool that did not finish may have taken effect as well.

    A tool server knows the key of a call alone; the rest is by the ledger. A key that is not there stands for itself.
    """
    names = ("tool", "key", "session", "turn", "call", "arguments", "wall", "attempt")
    by_key = {entry["key"]: entry for entry in ledger.values()}
    ended = {(line["key"], line["attempt"], line["pid"]) for line in written if line["line"] == DONE}
    effects = []
    for line in map(_of_tenant, written):
        if line["line"] == STARTED:
            entry = by_key.get(line["key"], {})
            known = {
                "session": entry.get("session_id", ""),
                "turn": entry.get("turn_id", ""),
                "call": entry.get("id", line["key"]),
                **line,
            }
            answered = (line["key"], line["attempt"], line["pid"]) in ended
            effects.append(Effect(**{name: known[name] for name in names}, answered=answered))
    return effects


def faults_of(written: Iterable[Document]) -> list[Fault]:
    """Returns the faults that took effect."""
    return [
        Fault(
            kind=line["kind"],
            target=str(line["target"]),
            began=line["began"],
            healed=line.get("healed") or line["began"],
        )
        for line in written
        if line.get("confirmed")
    ]


def first_seen_in(streams: Iterable[Document]) -> Mapping[tuple[str, int], float]:
    """Returns the time at which a reader first received each event, by the readers' own clock."""
    sessions: dict[int, str] = {}
    first_seen: dict[tuple[str, int], float] = {}
    for line in streams:
        if line["line"] == "chain":
            sessions[line["chain"]] = _of_tenant(line)["session"]
        if line["line"] == "got":
            for item in line["items"]:
                if item[0]:
                    first_seen.setdefault((sessions[line["chain"]], item[0]), line["wall"])
    return first_seen


async def _settled(database: AsyncDatabase[dict[str, Any]], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not await is_settled(database):  # noqa: ASYNC110 - a database sends no notification
        await asyncio.sleep(0.5)


async def is_settled(database: AsyncDatabase[dict[str, Any]]) -> bool:
    """Returns True if every turn has ended, waits for a person or client, or is queued behind one that waits."""
    heads = {_session(head): head for head in await database.heads.find({"active_turn": {"$ne": ""}}).to_list()}
    active = [head["active_turn"] for head in heads.values()]
    turns = {turn["id"]: turn for turn in await database.turns.find({"id": {"$in": active}}).to_list()}
    moving = await database.turns.find({"state": {"$in": _MOVING}}).to_list()
    return all(_session(turn) in heads and is_at_rest(turn, turns, heads[_session(turn)]) for turn in moving)


def _session(document: Document) -> str:
    return tenants.key(document["tenant"], document["session_id"])
