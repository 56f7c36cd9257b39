"""The verbs on positions of a session's log: list the checkpoints, resolve a position, restore the session to one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from turnkeeper.domain.checkpoint import MARKS, Checkpoint, checkpoint_of, event_named
from turnkeeper.domain.event import Event, SessionRestored
from turnkeeper.domain.history import BEGINNINGS, unfinished_turn
from turnkeeper.domain.message import MOST_CALLS
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.conversation import LARGE
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.audit import Operation, record_operation
from turnkeeper.engine.rules.sessions import RestorePoint, RestoreRequest
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import (
    CheckpointNotFound,
    InternalError,
    InvalidRequest,
    SessionNotFound,
)
from turnkeeper.event_loop import Slices, off_loop
from turnkeeper.limits.charge import repeated
from turnkeeper.store.changeset import Head, StoredEvent
from turnkeeper.store.contract import SessionLog
from turnkeeper.store.expired_cursors import check_not_trimmed

EVENTS_PER_READ = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPosition:
    """A position as a caller names it: after an event, at a checkpoint, or, with neither, at the log's end."""

    sequence: int | None = None
    checkpoint_id: str = ""


class Checkpoints:
    """The verbs on checkpoints and positions."""

    def __init__(self, store: SessionLog, log_writer: LogWriter, *, decode: Callable[[StoredEvent], Event]) -> None:
        self._store = store
        self._log_writer = log_writer
        self._decode = decode

    async def page(self, head: Head, *, after: int, limit: int) -> Sequence[Checkpoint]:
        """Returns at most `limit` checkpoints, oldest first, of events numbered above `after` that are not trimmed."""
        checkpoints: list[Checkpoint] = []
        after = max(after, head.compacted_to)
        while len(checkpoints) < limit:
            events = await self._store.events(
                head.session_key, after=after, limit=EVENTS_PER_READ, kinds=MARKS, until=head.last_seq
            )
            derived = (checkpoint_of(self._decode(stored), kind=stored.kind) for stored in events)
            checkpoints.extend(checkpoint for checkpoint in derived if checkpoint is not None)
            if len(events) < EVENTS_PER_READ:
                break
            after = events[-1].sequence
        return checkpoints[:limit]

    async def resolve(self, head: Head, position: LogPosition) -> int:
        """Returns the number of the event after which the position is.

        Raises CheckpointNotFound; InvalidRequest for a number that the log does not have; CursorExpired if the log is
        trimmed there, so that no caller can read what stood before the position.
        """
        if position.checkpoint_id:
            sequence = (await self._named(head, position.checkpoint_id)).sequence
            check_not_trimmed(sequence, head)
            return sequence
        if position.sequence is None:
            return head.last_seq
        if not 1 <= position.sequence <= head.last_seq:
            problem = f"must be from 1 to {head.last_seq}, the session's last event"
            error = InvalidRequest(f"sequence {problem}.", session_id=head.session_id, fields={"sequence": problem})
            error.rests_on_reading = position.sequence > head.last_seq
            raise error
        check_not_trimmed(position.sequence, head)
        return position.sequence

    async def restore(
        self,
        key: SessionKey,
        position: LogPosition,
        *,
        request: RestoreRequest | None = None,
        operation: Operation | None = None,
    ) -> int:
        """Restores the session to a position, by one event. Returns that event's number; nothing is erased.

        The repeat of a request gets the number that the first one got. Without a request, a session that was restored
        to the same position last stays as it is. An `operation` goes on record with the event. Raises SessionNotFound,
        RequestIdReused, and what `resolve` and `session_rules.restore` raise.
        """
        if request is not None and (record := await self._store.find_request(request.key)) is not None:
            record.check_same(request.fingerprint)
            repeated()
            return record.sequence

        async def prepare() -> Callable[[UnitOfWork], int]:
            stored = await self._store.session(key)
            if stored is None:
                raise SessionNotFound(session_id=key.session_id)
            head = stored[1]
            sequence = await self.resolve(head, position)
            if request is None and await self._is_restored_to(head, sequence):
                return lambda _: head.last_seq
            beginnings = await self.events_until(head, sequence, kinds=BEGINNINGS)
            unfinished = await off_loop(partial(unfinished_turn, beginnings), large=len(beginnings) > LARGE)
            point = RestorePoint(sequence=sequence, unfinished=unfinished, last_seq=head.last_seq)
            return partial(decide, point)

        def decide(point: RestorePoint, uow: UnitOfWork) -> int:
            sequence = session_rules.restore(uow, point, request)
            record_operation(uow, operation, sequence=sequence)
            return sequence

        stored = await self._log_writer.append_prepared(key, prepare)
        if isinstance(stored, Stored):
            return stored.value
        if request is None:
            raise InternalError
        stored.check_same(request.fingerprint)
        repeated()
        return stored.sequence

    async def events_until(self, head: Head, sequence: int, *, kinds: frozenset[str]) -> list[Event]:
        """Returns the log's events of these kinds up to a number."""
        return await self._events(head, after=0, until=sequence, kinds=kinds)

    async def calls_after(self, head: Head, sequence: int) -> list[Event]:
        """Returns the calls above a number, as many as one answer of a model may have."""
        return await self._events(
            head, after=sequence, until=head.last_seq, kinds=frozenset({"tool_called"}), most=MOST_CALLS
        )

    async def _events(
        self, head: Head, *, after: int, until: int, kinds: frozenset[str], most: int | None = None
    ) -> list[Event]:
        events: list[Event] = []
        slices = Slices()
        while True:
            page = await self._store.events(
                head.session_key, after=after, limit=EVENTS_PER_READ, kinds=kinds, until=until
            )
            for stored in page:
                events.append(self._decode(stored))
                await slices.step()
            if len(page) < EVENTS_PER_READ or (most is not None and len(events) >= most):
                return events[:most]
            after = page[-1].sequence

    async def _is_restored_to(self, head: Head, sequence: int) -> bool:
        """Returns True if the log's last event is a restoration to this position."""
        page = await self._store.events(head.session_key, after=head.last_seq - 1, limit=1)
        restored = SessionRestored(to_sequence=sequence)
        return any(stored.kind == "session_restored" and self._decode(stored).payload == restored for stored in page)

    async def _named(self, head: Head, checkpoint_id: str) -> Checkpoint:
        number = event_named(checkpoint_id)
        if 0 < number <= head.last_seq:
            page = await self._store.events(head.session_key, after=number - 1, limit=1, kinds=MARKS, until=number)
            for stored in page:
                checkpoint = checkpoint_of(self._decode(stored), kind=stored.kind)
                if checkpoint is not None and checkpoint.checkpoint_id == checkpoint_id:
                    return checkpoint
            check_not_trimmed(number - 1, head)
        raise CheckpointNotFound(session_id=head.session_id, metadata={"checkpoint_id": checkpoint_id})
