"""Places of a session's log: list those that have a name, find the one a caller means."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from turnkeeper.domain.checkpoint import MARKS, Checkpoint, checkpoint_of, event_named
from turnkeeper.domain.event import Event
from turnkeeper.errors import CheckpointNotFound, InvalidRequest
from turnkeeper.store.contract import Head, Store, StoredEvent

PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """A place as a caller names it: after an event, at a checkpoint, or, with neither, at the log's end."""

    sequence: int | None = None
    checkpoint_id: str = ""


class Checkpoints:
    """Reads checkpoints out of logs."""

    def __init__(self, store: Store, *, decode: Callable[[StoredEvent], Event]) -> None:
        self._store = store
        self._decode = decode

    async def page(self, head: Head, *, after: int, limit: int) -> Sequence[Checkpoint]:
        """At most `limit`, oldest first, of events numbered above `after`."""
        found: list[Checkpoint] = []
        while len(found) < limit:
            events = await self._store.events(
                head.tenant, head.session_id, after=after, limit=PAGE, kinds=MARKS, until=head.last_seq
            )
            marked = (checkpoint_of(self._decode(stored), kind=stored.kind) for stored in events)
            found.extend(each for each in marked if each is not None)
            if len(events) < PAGE:
                break
            after = events[-1].sequence
        return found[:limit]

    async def place(self, head: Head, at: At) -> int:
        """The number of the event after which it is. Raises CheckpointNotFound, InvalidRequest."""
        if at.checkpoint_id:
            return (await self._named(head, at.checkpoint_id)).sequence
        if at.sequence is None:
            return head.last_seq
        if not 1 <= at.sequence <= head.last_seq:
            problem = f"must be from 1 to {head.last_seq}, the session's last event"
            raise InvalidRequest(f"sequence {problem}.", session_id=head.session_id, fields={"sequence": problem})
        return at.sequence

    async def _named(self, head: Head, checkpoint_id: str) -> Checkpoint:
        number = event_named(checkpoint_id)
        if 0 < number <= head.last_seq:
            events = await self._store.events(
                head.tenant, head.session_id, after=number - 1, limit=1, kinds=MARKS, until=number
            )
            for stored in events:
                found = checkpoint_of(self._decode(stored), kind=stored.kind)
                if found is not None and found.checkpoint_id == checkpoint_id:
                    return found
        raise CheckpointNotFound(session_id=head.session_id, metadata={"checkpoint_id": checkpoint_id})
