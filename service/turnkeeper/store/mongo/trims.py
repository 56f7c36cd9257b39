"""Trimming: the beginnings of logs that are older than anybody asked to keep. Over all tenants.

An event's age is that of its `_id`: the database made it as the event was stored, by its own clock, to the second. (The
event's `at` is a replica's clock, for people.) Each head is changed only as it was read, and put at the end of the line
by `trim_at`; `trimmed_to` says up to where the deletion has come, so that whoever comes next goes on there.

Whoever was stopped in the middle may wake when the session is gone and its id is a new one's. That one was made after
the old head was read, so nothing that was stored since then is deleted. Deleted sessions are left to the purge, so its
whole delay lies between the two.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from bson import ObjectId

from turnkeeper.domain.fork import COPIED
from turnkeeper.faults import fault
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import Connection, Document, database_errors
from turnkeeper.store.mongo.heads import NOW, later

LOOK: Final = 1_000
"""Events of one session that one call looks at; what is left over comes with the next, without a pause."""
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
    trim_at: datetime | None
    deleted_at: datetime | None
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
            trim_at=head.get("trim_at"),
            deleted_at=head.get("deleted_at"),
            now=head["now"],
        )

    @property
    def as_read(self) -> Document:
        """The filter: nobody else went on with it, nor is it a new session of the same id: the times differ."""
        return {
            **keys.where(self.key),
            "last_seq": {"$gte": self.last_seq},
            "compacted_to": self.compacted_to,
            "trim_at": self.trim_at,
            "deleted_at": self.deleted_at,
        }


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
        if log.is_forking or log.deleted_at is not None:
            await self._connection.heads.update_one(log.as_read, [{"$set": {"trim_at": later(pause)}}])
            return 0
        through = await self._oldest_to_keep(log, before=log.now - keep) - 1
        wait = timedelta() if through - log.compacted_to >= LOOK else pause
        if through > log.compacted_to:
            moved = await self._connection.heads.update_one(log.as_read, {"$set": {"compacted_to": through}})
            if not moved.matched_count:
                return 0
            log = replace(log, compacted_to=through)
            fault("trim.before_delete")
        gone = await self._delete_up_to(log)
        done = {"trimmed_to": log.compacted_to, "trim_at": later(wait)}
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
            if event["seq"] != oldest or event["_id"] >= _first_id(before):
                break
            oldest += 1
        return oldest

    async def _first_of(self, log: _Log) -> int:
        """The first event of all turns that have not ended."""
        members = [keys.of_member(keys.session_of(log.key), turn) for turn in log.open_turns]
        match = {"_id": {"$in": members}, "tenant": log.key["tenant"]}
        turns = await self._connection.turns.find(match, {"first_sequence": 1}).to_list(None)
        return min((int(turn["first_sequence"]) for turn in turns), default=0)

    async def _delete_up_to(self, log: _Log) -> int:
        """Of what was stored before the head was read: whatever became of the session since, none of a new one goes."""
        match = {
            **log.key,
            "seq": {"$gt": log.trimmed_to, "$lte": log.compacted_to},
            "kind": {"$nin": sorted(COPIED)},
        }
        gone = 0
        found = self._connection.events.find(match, {"_id": 1})
        ids = [each["_id"] async for each in found if each["_id"] < _first_id(log.now)]
        for start in range(0, len(ids), DELETED_AT_ONCE):
            some = {"_id": {"$in": ids[start : start + DELETED_AT_ONCE]}, "tenant": log.key["tenant"]}
            gone += (await self._connection.events.delete_many(some)).deleted_count
        return gone


def _first_id(at: datetime) -> ObjectId:
    """The database gives no lower id in the second of that time, or later."""
    return ObjectId.from_datetime(at)
