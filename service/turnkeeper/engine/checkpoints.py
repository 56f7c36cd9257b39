"""Places of a session's log: list those that have a name, find the one a caller means, take the session back to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from turnkeeper.domain.checkpoint import MARKS, Checkpoint, checkpoint_of, event_named
from turnkeeper.domain.event import Event, SessionRestored
from turnkeeper.domain.history import BEGINNINGS, unfinished_turn
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.sessions import RestorePoint, RestoreRequest
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import (
    CheckpointNotFound,
    InternalError,
    InvalidRequest,
    SessionNotFound,
)
from turnkeeper.store.changeset import Head, StoredEvent, check_kept
from turnkeeper.store.contract import SessionLog

PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPosition:
    """A place as a caller names it: after an event, at a checkpoint, or, with neither, at the log's end."""

    sequence: int | None = None
    checkpoint_id: str = ""


class Checkpoints:
    """The verbs about places."""

    def __init__(self, store: SessionLog, log_writer: LogWriter, *, decode: Callable[[StoredEvent], Event]) -> None:
        self._store = store
        self._log_writer = log_writer
        self._decode = decode

    async def page(self, head: Head, *, after: int, limit: int) -> Sequence[Checkpoint]:
        """At most `limit`, oldest first, of events numbered above `after`, without those that were trimmed."""
        found: list[Checkpoint] = []
        after = max(after, head.compacted_to)
        while len(found) < limit:
            events = await self._store.events(
                head.session_key, after=after, limit=PAGE, kinds=MARKS, until=head.last_seq
            )
            marked = (checkpoint_of(self._decode(stored), kind=stored.kind) for stored in events)
            found.extend(each for each in marked if each is not None)
            if len(events) < PAGE:
                break
            after = events[-1].sequence
        return found[:limit]

    async def place(self, head: Head, at: LogPosition) -> int:
        """The number of the event after which it is. Raises CheckpointNotFound, InvalidRequest; CursorExpired where the
        log was trimmed: nobody can see there what they would go back to.
        """
        if at.checkpoint_id:
            named = (await self._named(head, at.checkpoint_id)).sequence
            check_kept(named, head)
            return named
        if at.sequence is None:
            return head.last_seq
        if not 1 <= at.sequence <= head.last_seq:
            problem = f"must be from 1 to {head.last_seq}, the session's last event"
            raise InvalidRequest(f"sequence {problem}.", session_id=head.session_id, fields={"sequence": problem})
        check_kept(at.sequence, head)
        return at.sequence

    async def restore(self, key: SessionKey, at: LogPosition, *, asked: RestoreRequest | None = None) -> int:
        """Take the session back to a place: one event, nothing is erased; that event's number.

        A repeat gets the first one's. Without an id, restored to the same place last, it stays as it is. Raises
        RequestIdReused, SessionNotFound, TurnInProgress, CheckpointNotFound,
        InvalidRequest and the errors of a session that takes no messages.
        """
        known = await self._store.find_request(asked.key) if asked else None
        if asked is not None and known is not None:
            known.check_same(asked.fingerprint)
            return known.sequence

        async def read_log() -> Callable[[UnitOfWork], int]:
            found = await self._store.session(key)
            if found is None:
                raise SessionNotFound(session_id=key.session_id)
            head = found[1]
            place = await self.place(head, at)
            if asked is None and await self._is_there(head, place):
                return lambda _: head.last_seq
            unfinished = unfinished_turn(await self.until(head, place, kinds=BEGINNINGS))
            point = RestorePoint(sequence=place, unfinished=unfinished, last_seq=head.last_seq)
            return partial(session_rules.restore, point=point, request=asked)

        stored = await self._log_writer.append_prepared(key, read_log)
        if isinstance(stored, Stored):
            return stored.value
        if asked is None:
            raise InternalError
        stored.check_same(asked.fingerprint)
        return stored.sequence

    async def _is_there(self, head: Head, place: int) -> bool:
        """The last event is a restoration to this place."""
        last = await self._store.events(head.session_key, after=head.last_seq - 1, limit=1)
        return any(self._decode(each).payload == SessionRestored(to_sequence=place) for each in last if _restores(each))

    async def until(self, head: Head, place: int, *, kinds: frozenset[str]) -> list[Event]:
        """The log up to a place."""
        found: list[Event] = []
        while True:
            after = found[-1].sequence if found else 0
            page = await self._store.events(head.session_key, after=after, limit=PAGE, kinds=kinds, until=place)
            found.extend(self._decode(stored) for stored in page)
            if len(page) < PAGE:
                return found

    async def next(self, head: Head, place: int, *, kinds: frozenset[str]) -> list[Event]:
        """The first events beyond a place."""
        found = await self._store.events(head.session_key, after=place, limit=PAGE, kinds=kinds, until=head.last_seq)
        return [self._decode(stored) for stored in found]

    async def _named(self, head: Head, checkpoint_id: str) -> Checkpoint:
        number = event_named(checkpoint_id)
        if 0 < number <= head.last_seq:
            events = await self._store.events(head.session_key, after=number - 1, limit=1, kinds=MARKS, until=number)
            for stored in events:
                found = checkpoint_of(self._decode(stored), kind=stored.kind)
                if found is not None and found.checkpoint_id == checkpoint_id:
                    return found
            check_kept(number - 1, head)
        raise CheckpointNotFound(session_id=head.session_id, metadata={"checkpoint_id": checkpoint_id})


def _restores(stored: StoredEvent) -> bool:
    return stored.kind == "session_restored"
