"""Trimming: the beginnings of logs that are older than anybody asked to keep. Over all tenants.

An event's age is that of its `_id`: the database made it as the event was stored, by its own clock, to the second. (The
event's `at` is a replica's clock, for people.) Each head is changed only as it was read, and put at the end of the line
by `trim_at`; `trimmed_to` says up to where the deletion has come, so that whoever comes next goes on there.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from turnkeeper.domain.fork import COPIED
from turnkeeper.faults import fault
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import Connection, Document, database_errors
from turnkeeper.store.mongo.heads import NOW, later

LOOK: Final = 1_000
"""Events of one session that one call looks at; what is left over comes with the next."""
DELETED_AT_ONCE: Final = 250


@dataclass(frozen=True, slots=True)
class _Log:
    """A session's log as its head tells of it. Fields of a later version are missing on an older head."""

    key: Document
    compacted_to: int
    trimmed_to: int
    last_seq: int
    open_turns: tuple[str, ...]
    is_forking: bool
    now: datetime

    @classmethod
    def of(cls, head: Document) -> "_Log":
        turns = (head["active_turn"], *head["queue"])
        return cls(
            key=head["_id"],
            compacted_to=head.get("compacted_to", 0),
            trimmed_to=head.get("trimmed_to", 0),
            last_seq=head["last_seq"],
            open_turns=tuple(filter(None, turns)),
            is_forking="forking" in head,
            now=head["now"],
        )

    @property
    def as_read(self) -> Document:
        """The filter: nobody else went on with it, and it is no new session of the same id."""
        return {**keys.where(self.key), "last_seq": {"$gte": self.last_seq}, "compacted_to": self.compacted_to}


class Trims:
    """Half of `Retention`."""

    _connection: Connection

    async def trim(self, *, keep: timedelta, pause: timedelta, limit: int) -> int:
        line: list[Document] = [
            {"$sort": {"trim_at": 1}},
            {"$limit": max(1, limit)},
            {"$set": {"now": NOW}},
            {"$match": {"$expr": {"$lte": ["$trim_at", NOW]}}},
        ]
        gone = 0
        with database_errors():
            for head in await self._connection.heads.aggregate(line).to_list(None):
                gone += await self._trim(_Log.of(head), keep=keep, pause=pause)
        return gone

    async def _trim(self, log: _Log, *, keep: timedelta, pause: timedelta) -> int:
        through = 0 if log.is_forking else await self._oldest_to_keep(log, before=log.now - keep) - 1
        if through > log.compacted_to:
            moved = await self._connection.heads.update_one(log.as_read, {"$set": {"compacted_to": through}})
            if not moved.matched_count:
                return 0
            log = replace(log, compacted_to=through)
            fault("trim.before_delete")
        gone = await self._delete_up_to(log)
        done = {"trimmed_to": log.compacted_to, "trim_at": later(pause)}
        await self._connection.heads.update_one(log.as_read, [{"$set": done}])
        return gone

    async def _oldest_to_keep(self, log: _Log, *, before: datetime) -> int:
        """The number of the first event above `compacted_to` that is too young, or of a turn that has not ended."""
        bound = log.last_seq + 1
        if log.open_turns:
            bound = await self._first_of(log)
        match = {**log.key, "seq": {"$gt": log.compacted_to, "$lt": bound}}
        found = self._connection.events.find(match, {"seq": 1}).sort("seq").limit(LOOK)
        oldest = log.compacted_to + 1
        async for event in found:
            if event["seq"] != oldest or event["_id"].generation_time >= before:
                break
            oldest += 1
        return oldest

    async def _first_of(self, log: _Log) -> int:
        """The first event of all turns that have not ended."""
        members = [keys.of_member(log.key["tenant"], log.key["session_id"], turn) for turn in log.open_turns]
        match = {"_id": {"$in": members}, "tenant": log.key["tenant"]}
        turns = await self._connection.turns.find(match, {"first_sequence": 1}).to_list(None)
        return min((int(turn["first_sequence"]) for turn in turns), default=0)

    async def _delete_up_to(self, log: _Log) -> int:
        """By their own ids: whatever became of the session meanwhile, no other event goes."""
        match = {
            **log.key,
            "seq": {"$gt": log.trimmed_to, "$lte": log.compacted_to},
            "kind": {"$nin": sorted(COPIED)},
        }
        gone = 0
        ids = [each["_id"] async for each in self._connection.events.find(match, {"_id": 1})]
        for start in range(0, len(ids), DELETED_AT_ONCE):
            some = {"_id": {"$in": ids[start : start + DELETED_AT_ONCE]}, "tenant": log.key["tenant"]}
            gone += (await self._connection.events.delete_many(some)).deleted_count
        return gone
