"""Run one turn: do the step that `next_step` decided, store it, repeat.

Everything here happens under one lease. A write that another owner's fence refuses ends the run; so does a lease that
could not be renewed. What had been streamed but not stored is not history (promise I10).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import (
    AwaitAnswers,
    AwaitResults,
    CallModel,
    Complete,
    Fail,
    ResolveLost,
    RetryPolicy,
    RunTools,
    Step,
    Turn,
    TurnState,
)
from turnkeeper.engine.eventlog.conversation import Conversation
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot
from turnkeeper.engine.eventlog.writer import LeaseLost, LogWriter
from turnkeeper.engine.execution.late_results import OrphanedCall
from turnkeeper.engine.execution.lease import HeldLease
from turnkeeper.engine.execution.model_call import ModelCaller
from turnkeeper.engine.execution.tool_runner import ToolRunner
from turnkeeper.engine.rules import turns as turn_rules
from turnkeeper.engine.rules.advance import Owner, advance_turn, due_step
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.faults import fault
from turnkeeper.model.contract import ModelAnswer, ModelFailure
from turnkeeper.store.changeset import Committed, Conflict, Snapshot
from turnkeeper.store.contract import Leases, SessionStore
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.spans import Spans
from turnkeeper.tools.toolbox import Finished, Toolbox

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunServices:
    """What every run works with."""

    store: SessionStore
    leases: Leases
    log_writer: LogWriter
    toolbox: Toolbox
    speech: ModelCaller
    metrics: Metrics
    spans: Spans
    retries: RetryPolicy
    jitter: Callable[[], float]
    strays: set[asyncio.Task[Finished]] = field(default_factory=set)
    also: Callable[[UnitOfWork], None] = lambda _: None
    """What another version adds to an owner's step."""


class TurnRun:
    """One turn under one lease."""

    def __init__(
        self,
        parts: RunServices,
        *,
        lease: HeldLease,
        feed: Feed,
        agent: Agent,
        seen: CachedSnapshot,
        memory: Conversation,
    ) -> None:
        self._parts = parts
        self._lease = lease
        self._feed = feed
        self._agent = agent
        self._memory = memory
        self._tools = ToolRunner(parts.toolbox, spans=parts.spans, metrics=parts.metrics, strays=parts.strays)
        self._handed_over = False
        self.seen = seen
        self.left: tuple[OrphanedCall, ...] = ()

    @property
    def _snapshot(self) -> Snapshot:
        return self.seen.snapshot

    @property
    def turn(self) -> Turn:
        if self._snapshot.turn is None:
            raise LookupError("the snapshot has no turn")
        return self._snapshot.turn

    async def run(self, *, lapses: int, begun: bool) -> None:
        """To the turn's end, or until it waits; `seen` is then the last that is known.

        `begun`: the turn was started in the step that took the lease. `taken_over`: its last owner was lost.
        Raises LeaseLost. A tool that must not run twice is not stopped then: it is in `left`.
        """
        try:
            if not begun:
                await self._append(lambda uow: turn_rules.begin_attempt(uow, lapses=lapses))
            while self._ours():
                if self._starts_nothing and not self._tools.calls:
                    await self._hand_over()
                    break
                await self._do(self._next(self._snapshot))
        except (LeaseLost, ServiceUnavailable):
            self._leave()
            raise
        except asyncio.CancelledError:
            if self._lease.lost:
                self._leave()
            raise
        finally:
            await self._tools.stop()

    def _leave(self) -> None:
        self.left = tuple(OrphanedCall(call=call, tool=tool) for call, tool in self._tools.leave())

    @property
    def _starts_nothing(self) -> bool:
        """The turn is handed over as soon as nothing of it is under way."""
        return self._lease.releasing or self._snapshot.head.suspended

    def _ours(self) -> bool:
        """The turn still goes on here."""
        return (
            not self._handed_over
            and self.turn.state is TurnState.RUNNING
            and self._snapshot.head.active_turn == self.turn.id
        )

    async def _do(self, step: Step) -> None:
        match step:
            case CallModel():
                await self._call_model()
            case AwaitResults():
                await self._await_results()
            case RunTools() if self._starts_nothing:
                await self._await_results()  # nothing new starts; what runs may still end
            case ResolveLost(calls=calls):
                await self._append(lambda uow: turn_rules.resolve_lost_calls(uow, calls, agent=self._agent))
                for _ in (call for call in calls if not call.tool_class.may_start_again):
                    self._parts.metrics.unknown_outcome("OWNER_LOST")
            case RunTools() | AwaitAnswers() | Complete() | Fail():
                await self._append(lambda _: None)
            case _:
                assert_never(step)

    def _next(self, snapshot: Snapshot) -> Step:
        return due_step(self.turn, snapshot.calls, self._owner())

    def _owner(self) -> Owner:
        return Owner(
            agent=self._agent,
            toolbox=self._parts.toolbox,
            fence=self._lease.fence,
            running=self._tools.calls,
            releasing=self._lease.releasing,
        )

    # --- storing -----------------------------------------------------------------------------------------------

    async def _append(self, decide: Callable[[UnitOfWork], None]) -> None:
        """Store what `decide` says, and with it whatever follows from it alone: an end, a wait, the start of tools.

        When something else moved (a message was queued, an approval decided), it reads and decides again.
        """
        while True:
            uow = self._unit_of_work()
            decide(uow)
            self._parts.also(uow)
            launch = advance_turn(uow, self._owner())
            if uow.turn.state.ended:
                fault("turn.before_end")
            committed = await self._commit(uow)
            if committed is not None:
                self.seen = replace(self.seen, snapshot=uow.snapshot_after(committed, by_owner=True))
                self._memory.extend(uow.stored_events(committed))
                self._start_tools(launch)
                return
            await self._read_again()

    def _unit_of_work(self) -> UnitOfWork:
        self.seen = self.seen.at(time.monotonic())
        return self._parts.log_writer.unit_of_work(self._snapshot)

    async def _commit(self, uow: UnitOfWork) -> Committed | None:
        """None when it is stale. An answer that does not come is asked for again, for two leases at most.

        The lease counts from the first sending: which of them was applied, nobody knows.
        """
        changeset_id = self._parts.log_writer.new_id()
        step = uow.changeset(changeset_id=changeset_id, fence=self._lease.fence, lease_for=self._lease.lease)
        began = time.monotonic()
        while True:
            try:
                with self._lease.writing():
                    verdict = await self._parts.log_writer.commit(step)
            except ServiceUnavailable:
                if time.monotonic() - began > 2 * self._lease.lease.total_seconds():
                    raise
                self._parts.metrics.append_retry("UNAVAILABLE")
                await asyncio.sleep(0.1 + self._parts.jitter() * 0.4)
                continue
            if isinstance(verdict, Committed):
                self._lease.renewed(began)
                return verdict
            if isinstance(verdict, Conflict):
                self._parts.metrics.append_retry("STALE")
                return None
            self._parts.metrics.fenced_write("FENCED")
            raise LeaseLost

    async def _read_again(self) -> None:
        key = self._lease.key
        while True:
            try:
                snapshot = await self._parts.store.snapshot(key, turn_id=self._lease.turn_id)
                if snapshot is None or snapshot.head.fence != self._lease.fence:
                    raise LeaseLost
                await self._memory.read(until=snapshot.head.last_seq)
            except ServiceUnavailable:
                await asyncio.sleep(0.1 + self._parts.jitter() * 0.4)
                continue
            self.seen = CachedSnapshot.fresh(snapshot)
            return

    # --- the model ---------------------------------------------------------------------------------------------

    async def _call_model(self) -> None:
        turn = self.turn
        self._lease.check()
        preview = self._feed.begin_preview(
            turn_id=turn.id,
            message_id=turn.next_message_id,
            attempt=turn.attempt,
            started_after=self._snapshot.head.last_seq,
            lease_held=lambda: self._lease.sure,
        )
        messages = self._memory.messages(self._agent.instructions)
        fault("turn.model.before_call")
        speaking = asyncio.create_task(self._parts.speech.speak(self._agent, turn, messages, preview))
        try:
            await self._until_nudged({speaking})
            while not speaking.done() and not self._lease.cut and not await self._interrupted():
                await self._until_nudged({speaking})
            await _stop(speaking)
            await self._heard(speaking, preview)
        finally:
            await _stop(speaking)
            if self._feed.preview is preview:
                self._feed.drop_preview()

    async def _heard(self, speaking: asyncio.Task[ModelAnswer], preview: Preview) -> None:
        if speaking.cancelled() and self._lease.cut:
            await self._hand_over()
            return
        if speaking.cancelled():
            await self._append(
                lambda uow: turn_rules.record_partial_answer(uow, preview.text(), model=self._agent.model)
            )
            return
        failure = speaking.exception()
        if isinstance(failure, ModelFailure):
            await self._model_failed(failure)
            return
        answer = speaking.result()
        fault("turn.model.after_answer")
        requests = tuple(
            replace(request, tool_call_id=f"call_{self._parts.log_writer.new_id()}") for request in answer.tool_requests
        )
        agent, toolbox = self._agent, self._parts.toolbox
        await self._append(lambda uow: turn_rules.record_answer(uow, answer, requests, agent=agent, toolbox=toolbox))

    async def _model_failed(self, failure: ModelFailure) -> None:
        tries = self.turn.tries + 1
        retries = replace(self._parts.retries, max_attempts=self._agent.limits.max_attempts)
        delay = retries.delay(tries, retry_after=failure.retry_after, jitter=self._parts.jitter())
        delay = delay if failure.retryable else None
        await self._append(lambda uow: turn_rules.record_model_failure(uow, failure.detail, tries=tries, delay=delay))
        if delay is not None and self.turn.state is TurnState.RUNNING:
            await self._back_off(delay.total_seconds())

    async def _back_off(self, seconds: float) -> None:
        """The wait before the next try. Of all nudges only a cancellation ends it, and a drain."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._lease.releasing:
            await self._until_nudged(set(), seconds=left)
            if await self._interrupted():
                await self._append(lambda _: None)
                return

    # --- tools -------------------------------------------------------------------------------------------------

    def _start_tools(self, calls: tuple[Call, ...]) -> None:
        for call in calls:
            self._lease.check()
            fault("turn.tool.before_start")
            self._tools.start(call, timeout=self._agent.limits.tool_timeout)

    async def _await_results(self) -> None:
        """Until a tool is done, somebody cancels, or an approval of a sibling was decided."""
        await self._until_nudged(self._tools.tasks, seconds=1.0)
        if self._lease.cut:
            await self._tools.stop()
            await self._hand_over()
            return
        interrupted = await self._interrupted()
        if interrupted:
            await self._tools.stop()
        results = self._tools.take_results()
        if not results and not interrupted:
            await self._read_again()
            if self._next(self._snapshot) != AwaitResults():
                await self._append(lambda _: None)
            return
        if results:
            fault("turn.tool.after_effect")
        await self._append(lambda uow: turn_rules.record_tool_results(uow, results))
        self._tools.stored()

    # --- waiting -----------------------------------------------------------------------------------------------

    async def _until_nudged(self, tasks: Collection[asyncio.Task[Any]], *, seconds: float = 3600.0) -> None:
        """Until one of the tasks is done, the run is nudged, or the time is over."""
        nudged = asyncio.create_task(self._lease.nudge.wait())
        try:
            await asyncio.wait({nudged, *tasks}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            nudged.cancel()

    async def _interrupted(self) -> bool:
        """The turn is to be cancelled. After a nudge the head is read to know."""
        if self._lease.nudge.is_set():
            self._lease.nudge.clear()
            await self._read_again()
        return self._snapshot.head.cancel.turn_id == self.turn.id

    async def _hand_over(self) -> None:
        """At drain: the next owner may go on at once. Text of a message that was cut does not count."""
        preview = self._feed.preview
        cut = preview is not None and preview.local and preview.turn_id == self.turn.id
        while not self._handed_over:
            uow = self._unit_of_work()
            turn_rules.hand_over(uow, cut=cut)
            self._handed_over = await self._commit(uow) is not None
            if self._handed_over:
                return
            await self._read_again()
            if self._snapshot.head.cancel.turn_id == self.turn.id:
                await self._append(lambda _: None)
                return


async def _stop(task: asyncio.Task[ModelAnswer]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
