"""Start, cancel, retry and wait for turns: rules, then one store write."""

import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import replace

from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import CancelReason, Turn, TurnState
from turnkeeper.engine.client_tools import ClientTools
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.execution.worker import Worker
from turnkeeper.engine.rules import messages as message_rules
from turnkeeper.engine.rules.decide_again import DecideAgain
from turnkeeper.engine.rules.messages import LeaseOffer, NewMessage, RetryRequest
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feed import Feeds, Waiting
from turnkeeper.engine.streaming.watcher import Watcher
from turnkeeper.errors import (
    InternalError,
    SessionError,
    TurnNotFound,
)
from turnkeeper.faults import fault
from turnkeeper.store.changeset import Cancel, LeaseChange, RequestKey, RequestRecord
from turnkeeper.store.contract import SessionLog
from turnkeeper.telemetry.metrics import Metrics

CANCEL_WAIT = 5.0
"""Seconds that CancelTurn waits for the turn's owner to answer."""


class Turns:
    """The verbs of ChatService."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        store: SessionLog,
        log_writer: LogWriter,
        feeds: Feeds,
        *,
        worker: Worker,
        client_tools: ClientTools,
        metrics: Metrics,
        woken: Callable[[SessionKey], None],
    ) -> None:
        """`woken` is told the session that has something for its owner."""
        self._store = store
        self._log_writer = log_writer
        self._feeds = feeds
        self._worker = worker
        self._client_tools = client_tools
        self._metrics = metrics
        self._woken = woken

    async def get(self, key: SessionKey, turn_id: str) -> Turn:
        turn = await self._store.turn(key, turn_id)
        if turn is None:
            raise TurnNotFound(session_id=key.session_id, turn_id=turn_id)
        return turn

    def waiting(self, key: SessionKey) -> AbstractContextManager[Waiting]:
        """To be open before a turn is started that is waited for."""
        return self._feeds.waiting(key)

    async def wait(self, waiting: Waiting, key: SessionKey, turn_id: str, *, seconds: float) -> Turn:
        """Once it has ended or waits for somebody, or as it is when the time is over."""

        async def now() -> Turn:
            known = waiting.known(turn_id)
            return known.turn if known else await self.get(key, turn_id)

        async def look() -> Turn | None:
            turn = await now()
            return turn if not turn.state.moving else None

        return await self._feeds.until(key, look, seconds=seconds) or await now()

    async def settled(self, key: SessionKey, turn_id: str, watcher: Watcher) -> Turn | None:
        """Returns the turn if it has ended or waits, and `watcher` has delivered all its events; otherwise None."""
        delivered = watcher.place.sequence
        cached = watcher.known(turn_id)
        if cached is not None:
            return cached.turn if cached.last <= delivered and not cached.turn.state.moving else None
        turn = await self.get(key, turn_id)
        if turn.state.moving:
            return None
        last = await self._store.last_seqs([key])
        undelivered = await self._store.events(key, after=delivered, limit=1, turn_id=turn_id, until=last[key])
        return None if undelivered else turn

    async def start(self, message: NewMessage) -> RequestRecord:
        """Accept a message: its turn is stored, and runs, waits in the queue, or waits for an owner.

        A repeat gets the first one's record. Raises SessionNotFound, TurnInProgress, QuotaExceeded,
        RequestIdReused, InvalidRequest for client tools that the agent has, and the errors of a session that takes no
        messages.
        """
        if message.options.client_tools:
            known = await self._store.find_request(message.key)
            if known is not None:
                return self._repeat(known, message.fingerprint)
            await self._client_tools.check(message.key.session_key, message.options.client_tools)
        return await self._first(message.key, message.fingerprint, self._start(message))

    async def _start(self, message: NewMessage) -> RequestRecord:
        began = time.monotonic()
        with self._worker.reserve() as room:
            fault("message.before_store")
            stored = await self._log_writer.append(
                message.key.session_key,
                lambda uow: message_rules.accept(uow, message, offer=self._offer(room=room)),
                request=message.key,
            )
            if not isinstance(stored, Stored):
                return self._repeat(stored, message.fingerprint)
            if stored.uow.head.lease is LeaseChange.TAKE:
                self._adopt(stored, began)
            else:
                self._woken(message.key.session_key)
        fault("message.after_store")
        self._metrics.message("USER")
        return stored.value[1]

    async def cancel(self, key: SessionKey, turn_id: str, *, by: str) -> tuple[Turn, int]:
        """The turn, CANCELLED or as it had ended; and the number of `turn_cancelled`, 0 when it is not stored yet.

        A live owner is asked and waited for, at most 5 s; a turn that waits or is queued is ended here.
        """
        ended = await self._cancel_here(key, turn_id, by=by)
        if ended is None:

            async def look() -> Turn | None:
                now = await self.get(key, turn_id)
                return now if now.state.ended else None

            ended = await self._feeds.until(key, look, seconds=CANCEL_WAIT)
        if ended is None or ended.state is not TurnState.CANCELLED:
            return ended or await self.get(key, turn_id), 0
        events = await self._store.events(
            key, after=ended.first_sequence, limit=1000, kinds=_CANCELLED, turn_id=turn_id
        )
        return ended, events[-1].sequence if events else 0  # trimmed since

    async def _cancel_here(self, key: SessionKey, turn_id: str, *, by: str) -> Turn | None:
        """The ended turn; None when its owner was asked, and has to answer."""
        while True:
            turn = await self.get(key, turn_id)
            if turn.state.ended:
                return turn
            stored = await self._log_writer.append(
                key, lambda uow: message_rules.cancel_unowned(uow, by=by), turn_id=turn_id
            )
            if not isinstance(stored, Stored):
                raise InternalError
            wish = Cancel(turn_id=turn_id, by=by, reason=CancelReason.REQUESTED.value)
            asked = stored.committed is None and await self._store.request_cancel(key, wish)
            self._woken(key)
            if asked:
                return None

    async def retry(self, request: RetryRequest) -> RequestRecord:
        """Take up the session's last turn again, in place. A repeat gets the first one's record.

        Raises TurnNotFound, TurnNotRetryable, RequestIdReused.
        """
        known = await self._store.find_request(request.key)
        if known is not None:
            return self._repeat(known, request.fingerprint)
        await self.get(request.key.session_key, request.turn_id)
        return await self._first(request.key, request.fingerprint, self._retry(request))

    async def _retry(self, request: RetryRequest) -> RequestRecord:
        """Decides on the session's last turn: it is read again when the log has grown since."""
        session = request.key.session_key
        began = time.monotonic()
        with self._worker.reserve() as room:

            async def read_last() -> Callable[[UnitOfWork], tuple[Turn, RequestRecord]]:
                read_at = (await self._store.last_seqs([session])).get(session, 0)
                newest = await self._store.turns(session, states=(), limit=1, before=None)

                def decide(uow: UnitOfWork) -> tuple[Turn, RequestRecord]:
                    if uow.snapshot.head.last_seq != read_at:
                        raise DecideAgain
                    return message_rules.retry(uow, request, last=newest[0], offer=self._offer(room=room))

                return decide

            stored = await self._log_writer.append_prepared(session, read_last, turn_id=request.turn_id)
            if not isinstance(stored, Stored):
                return self._repeat(stored, request.fingerprint)
            if stored.uow.head.lease is LeaseChange.TAKE:
                self._adopt(stored, began)
        return stored.value[1]

    async def _first(
        self, key: RequestKey, fingerprint: str, work: Coroutine[None, None, RequestRecord]
    ) -> RequestRecord:
        """What the work gives, whatever becomes of the caller. Refused because of its own twin, it is a repeat."""
        try:
            return await self._worker.outlive(work)
        except SessionError:
            known = await self._store.find_request(key)
            if known is None:
                raise
            return self._repeat(known, fingerprint)

    def _offer(self, *, room: bool) -> LeaseOffer | None:
        return (
            LeaseOffer(owner=self._worker.owner, lease=self._worker.lease, schema=self._worker.schema) if room else None
        )

    def _adopt(self, stored: Stored[tuple[Turn, RequestRecord]], began: float) -> None:
        if stored.committed is None:
            raise InternalError
        after = stored.uow.snapshot_after(stored.committed, by_owner=False)
        after = replace(after, turn=stored.value[0], calls=(), approvals=(), request=None)
        seen = replace(stored.cached, snapshot=after)
        self._worker.adopt(seen, began=began, said=stored.uow.stored_events(stored.committed))

    def _repeat(self, record: RequestRecord, fingerprint: str) -> RequestRecord:
        record.check_same(fingerprint)
        self._metrics.replay("REQUEST")
        return record


_CANCELLED = frozenset({"turn_cancelled"})
