"""Finds out whether a log still has a history that a replica knows: a restored database may not."""

from collections.abc import Mapping, Sequence

from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import LogEnd
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.measured_reads import MeasuredReads


class EndReads(MeasuredReads):
    """Implements `EventLog.ends` and `EventLog.holds`."""

    async def ends(self, sessions: Sequence[SessionKey]) -> Mapping[SessionKey, LogEnd]:
        match = {**keys.where_sessions(sessions), "forking": {"$exists": False}}
        with self._reading("ends") as read:
            documents = await read(self._connection.heads).find(match, {"last_seq": 1, "end": 1}).to_list(None)
        return {keys.session_of(head["_id"]): heads.end_of(head) for head in documents}

    async def holds(self, key: SessionKey, *ends: LogEnd) -> bool:
        """Sends one query, and another one if the first shows a log that is too short."""
        last = max(end.sequence for end in ends)
        head = await self._head_with(key, ends)
        if head is None or head["last_seq"] < last:
            async with self._consistent_reads.linearizable():
                head = await self._head_with(key, ends)
        if head is None or head["last_seq"] < last:
            return False
        stored = {event["seq"]: event["step_id"] for event in head["ends"]}
        if not all(stored.get(end.sequence, end.changeset_id).endswith(end.changeset_id) for end in ends):
            return False
        if any(end.sequence not in stored and end.sequence > head.get("compacted_to", 0) for end in ends):
            raise ServiceUnavailable(session_id=key.session_id)  # events are being restored
        return True

    async def _head_with(self, key: SessionKey, ends: Sequence[LogEnd]) -> Document | None:
        """Returns the head, with the events at these ends."""
        of_session = keys.of_session(key)
        match = {**of_session, "seq": {"$in": sorted({end.sequence for end in ends})}}
        pipeline: list[Document] = [
            {"$match": keys.where(of_session)},
            {"$project": {"last_seq": 1, "compacted_to": 1}},
            {
                "$lookup": {
                    "from": "events",
                    "pipeline": [{"$match": match}, {"$project": {"_id": 0, "seq": 1, "step_id": 1}}],
                    "as": "ends",
                }
            },
        ]
        with self._reading("holds") as read:
            return await read(self._connection.heads).first_of(pipeline)
