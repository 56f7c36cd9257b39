"""Trimming: deletes events at the beginnings of logs that are older than the configured time, over all tenants.

An event's age is that of its `_id`, which the database generates by its own clock, to the second, when it stores the
event. (The event's `at` is a replica's clock, for people.) Each head is changed only if it still is as it was read, and
gets a later `trim_at`, by which heads are examined in turn. `trimmed_to` records how far the deletion has come, so that
the next call continues there.

A replica that was stopped in the middle may continue when the session is gone and its id belongs to a new one. The new
one was created after the old head was read, so nothing that was stored since then is deleted. Trimming skips deleted
sessions, so at least the whole delay of the purge lies between the two.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from bson import ObjectId

from turnkeeper.domain.fork import COPIED
from turnkeeper.faults import fault
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import Connection, Document
from turnkeeper.store.mongo.heads import NOW, later
from turnkeeper.store.mongo.shares import Shares
from turnkeeper.store.mongo.unreadable import UnreadableDocument

PAGE: Final = 32
"""Logs that are looked up together."""
LOOK: Final = 1_000
"""Events of one session that one call examines, at most; the next call continues without a pause."""
DELETED_AT_ONCE: Final = 250
"""Events that one command deletes, at most."""


_FIELDS: Final = {
    **dict.fromkeys(("compacted_to", "trimmed_to", "last_seq", "active_turn", "queue"), 1),
    **dict.fromkeys(("forking", "trim_at", "deleted_at", "schema"), 1),
    "now": NOW,
}
"""What is read of a head, and the database's clock at the reading or before."""


@dataclass(frozen=True, slots=True)
class _Log:
    """What a head records of the session's log. An older head lacks the fields that later versions added."""

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
        """Reads a head document with a field `now`, the database's clock.

        Raises UnreadableDocument if a field is missing, or has a form that this version does not know.
        """
        try:
            return cls._of(head)
        except (KeyError, TypeError) as error:
            raise UnreadableDocument("Head", schema=head.get("schema")) from error

    @classmethod
    def _of(cls, head: Document) -> "_Log":
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
        """Returns the filter for the head as it was read. It matches no head that another call has trimmed since.

        It matches no new session of the same id either: its times differ.
        """
        return {
            **keys.where(self.key),
            "last_seq": {"$gte": self.last_seq},
            "compacted_to": self.compacted_to,
            "trim_at": self.trim_at,
            "deleted_at": self.deleted_at,
        }


class Trims:
    """Implements `Retention.trim`."""

    _connection: Connection
    _shares: Shares

    async def trim(self, *, keep: timedelta, pause: timedelta) -> AsyncIterator[int]:
        pages = self._shares.pages("trim", self._connection.heads, _due, by="trim_at", size=PAGE, fields=_FIELDS)
        async with aclosing(pages):
            async for heads, _ in pages:
                with self._connection.call("trim"):
                    gone = sum([await self._trim_log_of(head, keep=keep, pause=pause) for head in heads])
                yield gone

    async def _trim_log_of(self, head: Document, *, keep: timedelta, pause: timedelta) -> int:
        try:
            log = _Log.of(head)
        except UnreadableDocument as error:  # it is left to newer replicas, and keeps no other log waiting
            self._connection.unreadable.note(error)
            await self._connection.heads.update_one(keys.where(head["_id"]), [{"$set": {"trim_at": later(pause)}}])
            return 0
        return await self._trim(log, keep=keep, pause=pause)

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
        """Returns the first number above `compacted_to` whose event is too young or of a turn that has not ended."""
        bound = log.last_seq + 1
        if log.open_turns:
            bound = await self._first_of_open_turns(log)
        match = {**log.key, "seq": {"$gt": log.compacted_to, "$lt": bound}}
        events = self._connection.events.find(match, {"seq": 1}).sort("seq").limit(LOOK)
        oldest = log.compacted_to + 1
        async for event in events:
            if event["seq"] != oldest or event["_id"] >= _first_id(before):
                break
            oldest += 1
        return oldest

    async def _first_of_open_turns(self, log: _Log) -> int:
        """Returns the number of the first event of the turns that have not ended; 0 if none of them is stored."""
        members = [keys.of_member(keys.session_of(log.key), turn) for turn in log.open_turns]
        match = {"_id": {"$in": members}, "tenant": log.key["tenant"]}
        turns = await self._connection.turns.find(match, {"first_sequence": 1}).to_list(None)
        return min((int(turn["first_sequence"]) for turn in turns), default=0)

    async def _delete_up_to(self, log: _Log) -> int:
        """Deletes events that were stored before the head was read, so none of a new session. Returns how many."""
        match = {
            **log.key,
            "seq": {"$gt": log.trimmed_to, "$lte": log.compacted_to},
            "kind": {"$nin": sorted(COPIED)},
        }
        gone = 0
        events = self._connection.events.find(match, {"_id": 1})
        ids = [event["_id"] async for event in events if event["_id"] < _first_id(log.now)]
        for start in range(0, len(ids), DELETED_AT_ONCE):
            batch = {"_id": {"$in": ids[start : start + DELETED_AT_ONCE]}, "tenant": log.key["tenant"]}
            gone += (await self._connection.events.delete_many(batch)).deleted_count
        return gone


def _due(ago: timedelta) -> Document:
    """Returns the condition for logs that have been due for so long; an older head lacks the time, and is due."""
    return {"$expr": {"$lte": ["$trim_at", later(-ago) if ago else NOW]}}


def _first_id(at: datetime) -> ObjectId:
    """Returns the lowest id that the database can generate in the second of this time."""
    return ObjectId.from_datetime(at)
