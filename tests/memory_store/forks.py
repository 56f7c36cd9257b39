"""Makes forks."""

from collections.abc import Sequence
from dataclasses import replace

from tests.memory_store.part import Part
from tests.memory_store.state import LoggedEvent, StoredSession, UnfinishedFork
from turnkeeper.domain.event import NewEvent
from turnkeeper.domain.session import Session
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn
from turnkeeper.store.changeset import Fork, RequestRecord
from turnkeeper.store.mongo.forks import BATCH, BATCH_BYTES


class Forks(Part):
    """Implements `ForkStore`."""

    async def reserve_fork(self, fork: Fork) -> Fork | None:
        await self._enter("reserve_fork")
        key = fork.session.key
        if key in self._database.sessions:
            return None
        return _as_now(self._database.forks.setdefault(key, UnfinishedFork(replace(fork, copied=0))))

    async def copy_events(self, fork: Fork, events: Sequence[NewEvent]) -> Fork | None:
        await self._enter("copy_events")
        unfinished = self._database.forks.get(fork.session.key)
        if unfinished is None:
            return None
        if len(unfinished.log) == fork.copied:
            unfinished.log.extend(self._batch(fork, events))
        return _as_now(unfinished)

    async def finish_fork(
        self, fork: Fork, session: Session, *, turns: Sequence[Turn], calls: Sequence[Call], request: RequestRecord
    ) -> RequestRecord:
        await self._enter("finish_fork")
        database, key = self._database, session.key
        requests = database.sessions[request.key.session_key].requests
        if request.key not in requests:
            unfinished = database.forks.pop(key)
            database.sessions[key] = StoredSession(
                session=session,
                log=unfinished.log,
                update_time=session.update_time,
                log_needs=unfinished.fork.log_needs,
                turns={turn.id: turn for turn in turns},
                calls={call.id: call for call in calls},
            )
            requests[request.key] = request
        return requests[request.key]

    def _batch(self, fork: Fork, events: Sequence[NewEvent]) -> list[LoggedEvent]:
        """Returns the next events to copy, as many as one transaction may hold."""
        batch: list[LoggedEvent] = []
        room = BATCH_BYTES
        for sequence, event in enumerate(events[fork.copied : fork.copied + BATCH], fork.copied + 1):
            logged = LoggedEvent.of(
                event,
                codec=self._codec,
                session_id=fork.session.id,
                sequence=sequence,
                changeset_id=fork.session.etag,
                fence=0,
            )
            room -= len(logged.stored.payload)
            if batch and room < 0:
                break
            batch.append(logged)
        return batch


def _as_now(unfinished: UnfinishedFork) -> Fork:
    return replace(unfinished.fork, copied=len(unfinished.log))
