"""A run's files and database into a History. Nothing is judged here, beside what tests/checker compares."""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.read_concern import ReadConcern

from tests.chaos.history import Chain, Document, Effect, Fault, History, Logged, Prompt, Try
from tests.chaos.promises.ends import is_at_rest
from tests.chaos.record import CALLS, LOAD, STREAMS
from tests.chaos.streams import hash_of
from tests.chaos.tools import EFFECTS
from tests.checker.compare import differences
from turnkeeper.pb.v1 import event_pb2

PROMPTS = "model.jsonl"
_MOVING = ["PENDING", "RUNNING", "BACKING_OFF"]
_SECONDS_OF = 1e-9


async def read(uri: str, database: str, folder: Path, *, faults: Path | None, settle: float) -> History:
    """Everything, once the turns have come to rest, or after `settle` seconds. Raises OSError for a missing file."""
    load = json.loads((folder / LOAD).read_text())
    calls, streams = lines(folder / CALLS), lines(folder / STREAMS)
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        found = client.get_database(database, read_concern=ReadConcern("majority"))
        await _settled(found, settle)
        documents = {
            name: await found[name].find({}).to_list() for name in ("heads", "turns", "tool_calls", "approvals")
        }
        events = await found.events.find({}, sort=[("seq", 1)]).to_list()
    unfit = await differences(uri, database)
    return History(
        logs=logs_of(events),
        heads={each["session_id"]: each for each in documents["heads"]},
        turns={each["id"]: each for each in documents["turns"]},
        ledger={each["id"]: each for each in documents["tool_calls"]},
        approvals={each["id"]: each for each in documents["approvals"]},
        tries=tries_of(calls),
        left=[each["turn"] for each in calls if each["line"] == "left"],
        chains=chains_of(streams),
        effects=effects_of(lines(folder / EFFECTS)),
        faults=faults_of(lines(faults)) if faults else [],
        prompts=[Prompt(messages=each["messages"]) for each in lines(folder / PROMPTS)],
        seen=seen_in(streams),
        unfit=unfit,
        until=load["over"],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    """The file's JSON lines; none when there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def logs_of(events: Iterable[Document]) -> Mapping[str, Sequence[Logged]]:
    """Stored events by session, in the order given."""
    logs: dict[str, list[Logged]] = {}
    for document in events:
        logs.setdefault(document["session_id"], []).append(logged(document))
    return logs


def logged(document: Document) -> Logged:
    """A stored event. Its number is that of its document, its other fields those of its payload."""
    event = event_pb2.Event.FromString(document["payload"])
    return Logged(
        sequence=document["seq"],
        kind=str(event.WhichOneof("payload")),
        turn=event.turn_id,
        fence=document["fence"],
        hash=hash_of(event),
        wall=event.create_time.ToNanoseconds() * _SECONDS_OF,
        event=event,
    )


def tries_of(calls: Iterable[Document]) -> list[Try]:
    """Each call with its answer, when one was written down; what a stream said of its turn in the end is one too."""
    asked: dict[int, Document] = {}
    answered: dict[int, Document] = {}
    told: list[Try] = []
    for each in calls:
        match each["line"]:
            case "sent":
                asked[each["call"]] = each
            case "answered":
                answered[each["call"]] = each
            case "told":
                told.append(Try(number=0, rpc="turn of a stream", asked={}, told={"status": "OK", **each}))
    return [
        Try(number=number, rpc=each["rpc"], asked=each, told=answered.get(number, {})) for number, each in asked.items()
    ] + told


def chains_of(streams: Iterable[Document]) -> list[Chain]:
    opened = {each["chain"]: each for each in streams if each["line"] == "chain"}
    got: dict[int, list[Document]] = {number: [] for number in opened}
    for each in streams:
        if each["line"] == "got":
            got[each["chain"]].append(each)
    return [
        Chain(
            number=number,
            session=each["session"],
            after=each["after"],
            request=each["request"],
            previews=each["previews"],
            through=got[number][-1]["through"] if got[number] else each["after"],
            items=[item for response in got[number] for item in response["items"]],
        )
        for number, each in opened.items()
    ]


def effects_of(written: Iterable[Document]) -> list[Effect]:
    """The starts alone: what a tool did not finish may have taken effect as well."""
    names = ("tool", "key", "session", "turn", "call", "arguments", "wall")
    return [Effect(**{name: each[name] for name in names}) for each in written if each["line"] == "started"]


def faults_of(written: Iterable[Document]) -> list[Fault]:
    """Those that took effect; one that was never healed counts to the end of time."""
    return [
        Fault(
            kind=each["kind"],
            target=str(each["target"]),
            began=each["began"],
            healed=each.get("healed") or each["began"],
        )
        for each in written
        if each.get("confirmed")
    ]


def seen_in(streams: Iterable[Document]) -> Mapping[tuple[str, int], float]:
    """When a reader first had each event, by the readers' own clock."""
    sessions: dict[int, str] = {}
    seen: dict[tuple[str, int], float] = {}
    for each in streams:
        if each["line"] == "chain":
            sessions[each["chain"]] = each["session"]
        if each["line"] == "got":
            for item in each["items"]:
                if item[0]:
                    seen.setdefault((sessions[each["chain"]], item[0]), each["wall"])
    return seen


async def _settled(database: AsyncDatabase[dict[str, Any]], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not await is_settled(database):  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.5)


async def is_settled(database: AsyncDatabase[dict[str, Any]]) -> bool:
    """Whether every turn has ended, waits for somebody, or is queued behind one that does."""
    heads = {each["session_id"]: each for each in await database.heads.find({"active_turn": {"$ne": ""}}).to_list()}
    active = [head["active_turn"] for head in heads.values()]
    turns = {each["id"]: each for each in await database.turns.find({"id": {"$in": active}}).to_list()}
    moving = await database.turns.find({"state": {"$in": _MOVING}}).to_list()
    return all(turn["session_id"] in heads and is_at_rest(turn, turns, heads[turn["session_id"]]) for turn in moving)
