"""The verbs on turns: start one with a message, get, wait for, cancel and retry it."""

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from functools import partial

from turnkeeper import lease_clock
from turnkeeper.copies import replace
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import CancelReason, Turn, TurnState
from turnkeeper.engine.client_tools import ClientTools
from turnkeeper.engine.eventlog.session_lines import Place
from turnkeeper.engine.eventlog.writer import LogWriter, Stored, needs_place
from turnkeeper.engine.execution.rooms import Room
from turnkeeper.engine.execution.worker import Worker
from turnkeeper.engine.freezes import Freezes
from turnkeeper.engine.rules import messages as message_rules
from turnkeeper.engine.rules.audit import Operation
from turnkeeper.engine.rules.decide_again import DecideAgain
from turnkeeper.engine.rules.messages import LeaseOffer, NewMessage, RetryRequest
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.sessions import NewSession, Sessions
from turnkeeper.engine.streaming.feeds import Feeds, TurnWait
from turnkeeper.engine.streaming.watcher import Watcher
from turnkeeper.errors import (
    InternalError,
    ServiceUnavailable,
    SessionError,
    TurnNotFound,
)
from turnkeeper.faults import fault
from turnkeeper.limits.charge import repeated
from turnkeeper.store.changeset import Cancel, Creation, LeaseChange, RequestRecord
from turnkeeper.store.contract import SessionLog
from turnkeeper.telemetry.metrics import Metrics

CANCEL_WAIT = 5.0
"""Seconds that a cancellation waits until the turn's owner has stored it."""


class Turns:
    """The verbs on turns."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        store: SessionLog,
        log_writer: LogWriter,
        feeds: Feeds,
        *,
        sessions: Sessions,
        worker: Worker,
        client_tools: ClientTools,
        metrics: Metrics,
        freezes: Freezes,
    ) -> None:
        self._store = store
        self._log_writer = log_writer
        self._feeds = feeds
        self._sessions = sessions
        self._worker = worker
        self._client_tools = client_tools
        self._metrics = metrics
        self._freezes = freezes

    async def after(self, key: SessionKey, record: RequestRecord) -> Turn:
        """Returns the turn of a request that had its effect, as it was then or later; raises as `get`."""
        if (await self._store.last_seqs([key])).get(key, 0) >= record.sequence:
            return await self.get(key, record.turn_id)
        async with self._store.linearizable():
            return await self.get(key, record.turn_id)

    async def get(self, key: SessionKey, turn_id: str) -> Turn:
        """Returns the turn. Raises TurnNotFound if the session has no such turn."""
        turn = await self._store.turn(key, turn_id)
        if turn is None:
            raise TurnNotFound(session_id=key.session_id, turn_id=turn_id)
        return turn

    def waiting(self, key: SessionKey) -> AbstractContextManager[TurnWait]:
        """Watches the session from its entry on. Enter it before the turn starts, and pass it to `wait`."""
        return self._feeds.waiting(key)

    async def wait(self, waiting: TurnWait, key: SessionKey, turn_id: str, *, seconds: float) -> Turn:
        """Returns the turn once it has ended or waits for an answer, or as it is after `seconds`."""

        async def current() -> Turn:
            cached = waiting.cached_turn(turn_id)
            return cached.turn if cached else await self.get(key, turn_id)

        async def resting() -> Turn | None:
            turn = await current()
            return turn if not turn.state.moving else None

        return await self._feeds.until(key, resting, seconds=seconds) or await current()

    async def settled(self, key: SessionKey, turn_id: str, watcher: Watcher) -> Turn | None:
        """Returns the turn if it has ended or waits, and `watcher` has delivered all its events; otherwise None.

        Raises TurnNotFound if there is certainly no such turn.
        """
        delivered = watcher.position.sequence
        cached = watcher.cached_turn(turn_id)
        if cached is not None:
            return cached.turn if cached.last_seq <= delivered and not cached.turn.state.moving else None
        try:
            turn = await self.get(key, turn_id)
        except TurnNotFound:
            async with self._store.linearizable():
                turn = await self.get(key, turn_id)
        if turn.state.moving:
            return None
        last = await self._store.last_seqs([key])
        undelivered = await self._store.events(key, after=delivered, limit=1, turn_id=turn_id, until=last.get(key, 0))
        return None if undelivered else turn

    async def start(self, message: NewMessage, *, new: NewSession | None = None) -> RequestRecord:
        """Accepts a message. Its turn runs here if the replica has room; otherwise any replica may claim it.

        A turn that would be the session's active one is refused while its agent runs as many turns here as it may.

        With `new`, creates the session if there is none, in the same changeset.

        Returns the request's record, the same for every repeat. Raises SessionNotFound, RequestIdReused, InvalidRequest
        if a client tool has the name of one of the agent's tools, AgentNotAvailable, and what `message_rules.accept`
        raises; with `new` also the errors of `Sessions.ensure`. Raises AdmissionFrozen while the operator takes no new
        work.
        """
        if new is not None:
            creation = await self._sessions.ensure_or_create_later(new)
            if creation is not None:
                with suppress(DecideAgain):
                    return await self._start_first(message, creation)
                await self._sessions.ensure(new)
        if message.options.client_tools:
            record = await self._store.find_request(message.key)
            if record is not None:
                return self._repeated(message, record)
            await self._client_tools.check(
                message.key.session_key, message.options.client_tools, owner=message.key.principal
            )

        def decide(uow: UnitOfWork) -> tuple[Turn, RequestRecord]:
            accepted = message_rules.accept(uow, message, offer=None)
            self._freezes.check(message.key.tenant, uow.session.agent)
            return accepted

        return await self._once(message, decide, partial(self._start, message, None))

    async def _start_first(self, message: NewMessage, creation: Creation) -> RequestRecord:
        """Accepts a message that creates its session. Raises DecideAgain if it cannot: the session may exist."""
        if self._client_tools.name_problems(creation.agent, message.options.client_tools):
            raise DecideAgain  # the session may have another version of the agent
        return await self._once(message, None, partial(self._start, message, creation))

    async def _start(self, message: NewMessage, creation: Creation | None, place: Place) -> RequestRecord:
        began = lease_clock.now()
        with place, self._worker.reserve(message.key.tenant) as room:
            fault("message.before_store")
            stored = await self._append(message, creation, place, room)
            if not isinstance(stored, Stored):
                return self._repeated(message, stored)
            if stored.uow.head.lease is LeaseChange.TAKE:
                self._adopt(stored, began)
            else:
                self._log_writer.notify_owner(message.key.session_key)
        fault("message.after_store")
        self._metrics.message("USER")
        return stored.value[1]

    async def _append(
        self, message: NewMessage, creation: Creation | None, place: Place, room: Room
    ) -> Stored[tuple[Turn, RequestRecord]] | RequestRecord:
        accept = message_rules.accept if creation is None else message_rules.accept_first

        def decide(uow: UnitOfWork) -> tuple[Turn, RequestRecord]:
            turn, record = accept(uow, message, offer=self._offer(room))
            self._freezes.check(message.key.tenant, turn.agent)
            if uow.head.active_turn == turn.id:  # otherwise it waits in its session's queue
                room.take(turn.agent)
            return turn, record

        if creation is None:
            return await self._log_writer.append(message.key.session_key, decide, request=message.key, place=place)
        stored = await self._log_writer.append_first(creation, decide)
        if stored is None:
            raise DecideAgain
        return stored

    async def cancel(
        self, key: SessionKey, turn_id: str, *, by: str, operation: Operation | None = None
    ) -> tuple[Turn, int]:
        """Cancels a turn. One that has an owner is cancelled by its owner, within CANCEL_WAIT; any other here.

        Returns the turn, and the number of its `turn_cancelled` event. The number is 0 if the turn had ended otherwise,
        if its owner has not cancelled it yet, or if the event is trimmed. `by` is the principal. An `operation` goes on
        record with the event. Raises as `get`.
        """
        turn = await self._cancel_unless_owned(key, turn_id, by=by, operation=operation)
        if turn is None:

            async def ended() -> Turn | None:
                turn = await self.get(key, turn_id)
                return turn if turn.state.ended else None

            turn = await self._feeds.until(key, ended, seconds=CANCEL_WAIT)
        if turn is None or turn.state is not TurnState.CANCELLED:
            return turn or await self.get(key, turn_id), 0
        events = await self._store.events(key, after=turn.first_sequence, limit=1000, kinds=_CANCELLED, turn_id=turn_id)
        return turn, events[-1].sequence if events else 0

    async def order_cancel(self, key: SessionKey, turn_id: str, *, by: str, operation: Operation) -> Turn | None:
        """Cancels a turn without an owner. Returns it as it has ended, or None if its owner is to cancel it.

        `by` is the principal; `operation` goes on record with the cancellation. Raises as `get`.
        """
        return await self._cancel_unless_owned(key, turn_id, by=by, operation=operation)

    async def _cancel_unless_owned(
        self, key: SessionKey, turn_id: str, *, by: str, operation: Operation | None
    ) -> Turn | None:
        """Returns the ended turn, or None if its owner was requested to cancel it."""
        origin = operation.origin if operation is not None else None
        cancel = Cancel(turn_id=turn_id, by=by, reason=CancelReason.REQUESTED.value, origin=origin)
        decide = partial(message_rules.cancel_unowned, by=by, operation=operation)
        tries = 0
        while True:
            tries += 1
            turn = await self.get(key, turn_id)
            if turn.state.ended:
                return turn
            stored = await self._log_writer.append(key, decide, turn_id=turn_id)
            if not isinstance(stored, Stored):
                raise InternalError
            is_requested = stored.committed is None and await self._store.request_cancel(key, cancel)
            self._log_writer.notify_owner(key)
            if is_requested:
                return None
            if stored.committed is None:  # its owner has just left it
                await self._log_writer.pause(tries)

    async def retry(self, request: RetryRequest) -> RequestRecord:
        """Runs the session's last turn again, in place.

        Returns the request's record, the same for every repeat. Raises TurnNotFound, RequestIdReused, and what
        `message_rules.retry` raises.
        """
        record = await self._store.find_request(request.key)
        if record is not None:
            return self._repeated(request, record)
        await self.get(request.key.session_key, request.turn_id)
        return await self._once(request, needs_place, partial(self._retry, request))

    async def _retry(self, request: RetryRequest, place: Place) -> RequestRecord:
        session = request.key.session_key
        began = 0.0
        with place, self._worker.reserve(session.tenant) as room:

            async def prepare() -> Callable[[UnitOfWork], tuple[Turn, RequestRecord]]:
                nonlocal began
                began = lease_clock.now()  # the lease's age counts from the try that takes it
                read_at = (await self._store.last_seqs([session])).get(session, 0)
                newest = await self._store.turns(session, states=(), limit=1, before=None)

                def decide(uow: UnitOfWork) -> tuple[Turn, RequestRecord]:
                    if uow.snapshot.head.last_seq != read_at:
                        raise DecideAgain
                    decided = message_rules.retry(uow, request, last=newest[0], offer=self._offer(room))
                    self._freezes.check(session.tenant, uow.session.agent)
                    room.take(uow.session.agent)
                    return decided

                return decide

            stored = await self._log_writer.append_prepared(session, prepare, turn_id=request.turn_id, place=place)
            if not isinstance(stored, Stored):
                return self._repeated(request, stored)
            if stored.uow.head.lease is LeaseChange.TAKE:
                self._adopt(stored, began)
        return stored.value[1]

    async def _once(
        self,
        request: NewMessage | RetryRequest,
        decide: Callable[[UnitOfWork], tuple[Turn, RequestRecord]] | None,
        work: Callable[[Place], Coroutine[None, None, RequestRecord]],
    ) -> RequestRecord:
        """Returns what `work` returns. It runs to its end even if the caller leaves, unless that stands in line.

        `decide` is the decision as far as it needs no place; None if there is no session to decide on yet. If it is
        refused because the same request was stored at the same time, returns that one's record.
        """
        entered: Place | Stored[tuple[Turn, RequestRecord]] | RequestRecord | None = None
        try:
            entered = await self._log_writer.enter(request.key.session_key, decide, request=request.key)
            if isinstance(entered, Place):
                return await self._worker.shield(work(entered))
        except SessionError as error:
            if isinstance(entered, Place):
                entered.leave()  # the work may not have begun
            if isinstance(error, ServiceUnavailable):
                raise  # its time is over: another read of a database that does not answer would double it
            record = await self._store.find_request(request.key)
            if record is None:
                raise
            return self._repeated(request, record)
        if not isinstance(entered, RequestRecord):
            raise InternalError
        return self._repeated(request, entered)

    def _offer(self, room: Room) -> LeaseOffer | None:
        """Returns this replica's offer to own the turn, or None if it has no room."""
        return self._worker.offer if room.is_free else None

    def _adopt(self, stored: Stored[tuple[Turn, RequestRecord]], began: float) -> None:
        """Runs a turn whose lease was taken in the changeset that stored it. `began`: before it was sent."""
        if stored.committed is None:
            raise InternalError
        after = stored.uow.snapshot_after(stored.committed, by_owner=False)
        after = replace(after, turn=stored.value[0], calls=(), approvals=(), request=None)
        cached = replace(stored.cached, snapshot=after)
        before = stored.uow.snapshot.head.end
        events = stored.uow.stored_events(stored.committed)
        self._worker.adopt(cached, taken_at=began, events=events, before=before)

    def _repeated(self, request: NewMessage | RetryRequest, record: RequestRecord) -> RequestRecord:
        """Returns the record of the request that this one repeats. Raises RequestIdReused if it is another request."""
        record.check_same(request.fingerprint)
        self._metrics.replay("REQUEST")
        repeated()
        return record


_CANCELLED = frozenset({"turn_cancelled"})
