"""Runs one turn: executes the step that the rules name next, stores its outcome, and repeats.

Everything happens under one lease. The run ends when a write is refused because of another owner's fence, or when the
lease could not be renewed in time. Text that was streamed but not stored is not part of the conversation (promise I10).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, assert_never

from turnkeeper.codes import Code
from turnkeeper.copies import replace
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.message import ToolRequest
from turnkeeper.domain.tool import Call, CallState, ToolOutcome
from turnkeeper.domain.turn import (
    AwaitAnswers,
    AwaitResults,
    CallModel,
    Complete,
    Fail,
    ResolveLost,
    RunTools,
    Step,
    Turn,
    TurnState,
)
from turnkeeper.engine.eventlog.conversation import Conversation
from turnkeeper.engine.eventlog.step_log import log_policy
from turnkeeper.engine.execution.call_progress import WatchedProgress
from turnkeeper.engine.execution.detached import CANCEL_TIME, stop
from turnkeeper.engine.execution.late_results import LateResults
from turnkeeper.engine.execution.owned_turn import OwnedTurn
from turnkeeper.engine.execution.reconciliation import Reconciler
from turnkeeper.engine.execution.services import RunServices
from turnkeeper.engine.execution.tool_runner import ToolRunner
from turnkeeper.engine.rules import turns as turn_rules
from turnkeeper.engine.rules.advance import Owner, advance_turn, due_step
from turnkeeper.engine.rules.tool_calls import ruled
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.event_loop import off_loop
from turnkeeper.faults import fault
from turnkeeper.isolation import ends_task
from turnkeeper.model.contract import ModelAnswer, ModelFailure
from turnkeeper.model.failure import Reason, failure
from turnkeeper.tools.toolbox import CheckedRequest

RESULT_POLL = 1.0
"""Seconds after which an owner that awaits tools reads the session again."""
TRIES_OF_AN_ANSWER = 2
"""Tries of one model call at most, if its answer had begun: each one costs a whole answer."""
TRIES_AT_OUR_FAULT = 8
"""Tries of a model call that this replica could not make, at least: a minute, whatever the agent's limit."""
NO_LIMIT = 3600.0
"""Seconds: longer than any tool may take."""
DEADLINE_GRACE = 5.0
"""Seconds that a model call has beyond its deadline, which it watches itself."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class TurnRun:
    """One run of a turn, from the lease to the turn's end, a wait, or the hand-over to another owner."""

    def __init__(
        self,
        services: RunServices,
        owned: OwnedTurn,
        *,
        feed: Feed,
        agent: Agent,
        conversation: Conversation,
        late_results: LateResults,
    ) -> None:
        """`late_results` awaits the calls that must not run twice and whose tools outlive the run, or their time."""
        self._services = services
        self._owned = owned
        self._late_results = late_results
        self._lease = owned.lease
        self._feed = feed
        self._agent = agent
        self._conversation = conversation
        caller, patience = owned.turn.tool_caller, services.outcome_patience
        reconciler = Reconciler(services.toolbox, caller=caller, patience=patience, jitter=services.jitter)
        parts: dict[str, Any] = {"spans": services.spans, "metrics": services.metrics, "detached": services.detached}
        parts["progress"] = WatchedProgress(feed, lease_held=self._lease.is_surely_held)
        self._tools = ToolRunner(
            services.toolbox, caller=caller, hold=owned.hold, reconciler=reconciler, jitter=services.jitter, **parts
        )
        self._handed_over = False
        self._awaits_late_until = 0.0
        """By the monotonic clock; results of lost owners' calls are awaited until then."""

    @property
    def turn(self) -> Turn:
        """Returns the turn as its owner knows it."""
        return self._owned.turn

    async def run(self, *, lapses: int, is_begun: bool) -> None:
        """Runs the turn until it ends, waits, or is handed over.

        `is_begun`: the commit that took the lease began the attempt. `lapses`: how many owners in a row were lost
        before. Raises LeaseLost or ServiceUnavailable if the lease is lost, or may be lost.
        """
        self._awaits_late_until = time.monotonic() + self._services.outcome_patience.total_seconds()
        try:
            if not is_begun:
                await self._append(lambda uow: turn_rules.begin_attempt(uow, lapses=lapses))
            while self._may_continue():
                if self._must_hand_over:
                    self._tools.rooms.stop()
                if self._must_hand_over and not self._tools.running:
                    await self._hand_over()
                    break
                if not self._must_hand_over:
                    self._tools.reconcile_lost(self._owned.snapshot.calls, time_of=self._time_of)
                await self._execute(self._due_step())
        except BaseException as error:
            if self._lease.lost or not ends_task(error):
                self._late_results.add(self._tools.take_orphans())
            raise
        finally:
            await self._tools.stop()

    @property
    def _must_hand_over(self) -> bool:
        """Returns True if the owner starts nothing new, and hands the turn over once none of its tools runs."""
        return self._lease.releasing or self._owned.snapshot.head.suspended

    def _may_continue(self) -> bool:
        """Returns True while the turn runs, is the session's active one, and was not handed over."""
        return (
            not self._handed_over
            and self.turn.state is TurnState.RUNNING
            and self._owned.snapshot.head.active_turn == self.turn.id
        )

    async def _execute(self, step: Step) -> None:
        match step:
            case CallModel():
                await self._call_model()
            case AwaitResults():
                await self._await_results()
            case RunTools() if self._must_hand_over:
                await self._await_results()  # starts no tool, but awaits those that run
            case ResolveLost(calls=calls):
                lost = frozenset(call.id for call in calls)
                await self._resolve_lost(lost)
            case RunTools() | AwaitAnswers() | Complete() | Fail():
                await self._append(lambda _: None)
            case _:
                assert_never(step)

    def _due_step(self) -> Step:
        return due_step(self.turn, self._owned.snapshot.calls, self._owner())

    def _owner(self) -> Owner:
        return Owner(
            agent=self._agent,
            toolbox=self._services.toolbox,
            policies=self._services.policies,
            fence=self._lease.fence,
            running=self._tools.running | self._awaited_late(),
            releasing=self._lease.releasing,
            has_room=lambda call: self._tools.rooms.take(call, timeout=self._time_of(call)),
            placed=self._tools.rooms.placed,
        )

    def _awaited_late(self) -> frozenset[str]:
        """Returns the ids of the calls of lost owners whose results may still come, until patience ends.

        Their owners may only be stopped, and their tools run on: nothing else tells what they did.
        """
        if time.monotonic() >= self._awaits_late_until:
            return frozenset()
        return frozenset(
            call.id
            for call in self._owned.snapshot.calls
            if call.state is CallState.STARTED
            and call.fence < self._lease.fence
            and not call.tool_class.may_start_again
            and call.late_result is None
        )

    async def _resolve_lost(self, call_ids: frozenset[str]) -> None:
        unknown = await self._append(lambda uow: turn_rules.resolve_lost_calls(uow, call_ids))
        for _ in range(unknown):
            self._services.metrics.unknown_outcome("OWNER_LOST")

    async def _append(self, decide: Callable[[UnitOfWork], T]) -> T:
        """Stores a decision together with all that follows from it: an end, a wait, the start of tools.

        Then starts the tools. Returns what `decide` returned. Raises as `OwnedTurn.append`.
        """

        def decide_and_advance(uow: UnitOfWork) -> tuple[T, tuple[Call, ...]]:
            decided = decide(uow)
            self._services.add_to_changes(uow)
            return decided, self._advance(uow)

        decided, calls = await self._owned.append(decide_and_advance)
        for call in calls:
            await self._owned.hold()
            fault("turn.tool.before_start")
            self._tools.start(call, timeout=self._time_of(call))
        self._tools.rooms.release_unused(self._owned.snapshot.calls)
        return decided

    def _time_of(self, call: Call) -> timedelta:
        """Returns how long the call's tool may run."""
        return self._services.toolbox.time_of(call.tool, at_most=self._agent.limits.tool_timeout)

    def _advance(self, uow: UnitOfWork) -> tuple[Call, ...]:
        calls = advance_turn(uow, self._owner())
        if uow.turn.state.ended:
            fault("turn.before_end")
        return calls

    # --- the model ---------------------------------------------------------------------------------------------

    async def _call_model(self) -> None:
        """Calls the model until it has answered, the turn is cancelled, or the run is cut; stores the outcome."""
        turn = self.turn
        await self._owned.hold()
        preview = self._feed.begin_preview(
            turn_id=turn.id,
            message_id=turn.next_message_id,
            attempt=turn.attempt,
            started_after=self._owned.snapshot.head.last_seq,
            lease_held=self._lease.is_surely_held,
        )
        messages = self._conversation.messages(self._agent.instructions)
        fault("turn.model.before_call")
        task = asyncio.create_task(self._services.model_caller.call(self._agent, turn, messages, preview))
        try:
            with self._services.memory.held(self._conversation.size):  # the request has the same text once more
                in_time = await self._until_answered(task)
                await self._stop_model_call(task, preview)
            await self._record_model_call(task, preview, in_time=in_time)
        finally:
            await self._stop_model_call(task, preview)
            if self._feed.preview is preview:
                self._feed.drop_preview()

    async def _until_answered(self, task: asyncio.Task[ModelAnswer]) -> bool:
        """Waits for the model's answer or failure, a cancellation, or a cut. Returns False if none comes in time."""
        until = time.monotonic() + self._services.answer_time.total_seconds() + DEADLINE_GRACE
        while True:
            await self._until_notified({task}, seconds=max(0.0, until - time.monotonic()))
            if task.done() or self._lease.cut or await self._is_interrupted():
                return True
            if time.monotonic() >= until:
                return False

    async def _stop_model_call(self, task: asyncio.Task[ModelAnswer], preview: Preview) -> None:
        """Cancels the call. One that has not ended after CANCEL_TIME is left behind: what it yields goes nowhere."""
        detached = self._services.detached
        try:
            if task.done() or task in detached or await stop(task, detached):
                return
        finally:
            preview.close()
        self._services.metrics.call_detached("MODEL")
        logger.warning(
            "a cancelled model call of agent %s (model %s) did not end within %g s: it is left behind, what it yields "
            "goes nowhere, and its turn goes on without it",
            *(self._agent.name, self._agent.model, CANCEL_TIME),
            extra={"session": self.turn.session_id, "turn": self.turn.id},
        )

    async def _record_model_call(self, task: asyncio.Task[ModelAnswer], preview: Preview, *, in_time: bool) -> None:
        if not task.done() or task.cancelled():
            await self._record_stopped_call(preview, in_time=in_time)
            return
        failed = task.exception()
        if isinstance(failed, ModelFailure):
            await self._record_model_failure(failed)
            return
        answer = task.result()
        fault("turn.model.after_answer")
        new_id = self._services.log_writer.new_id
        requests = tuple(replace(request, tool_call_id=f"call_{new_id()}") for request in answer.tool_requests)
        untrusted = self._conversation.untrusted
        checked = await off_loop(partial(self._checked, requests, untrusted=untrusted), large=bool(requests))
        await self._append(lambda uow: turn_rules.record_answer(uow, answer, checked, untrusted=untrusted))
        log_policy(self._agent, checked, turn=self.turn)

    def _checked(self, requests: Sequence[ToolRequest], *, untrusted: bool) -> tuple[CheckedRequest, ...]:
        """Returns the requests of an answer, compared with their tools, and ruled on. Takes up to a few seconds."""
        turn, session, agent = self.turn, self._owned.snapshot.session, self._agent
        checked = self._services.toolbox.checked(requests, agent, clients=turn.options.client_tools)
        rule = partial(ruled, policies=self._services.policies, agent=agent, turn=turn, session=session)
        return tuple(rule(request, untrusted=untrusted) for request in checked)

    async def _record_stopped_call(self, preview: Preview, *, in_time: bool) -> None:
        """Stores what follows from a call that has no outcome of its own. `in_time`: its time was not over."""
        if self._lease.cut:
            await self._hand_over()
        elif in_time:
            text = preview.text()
            await self._append(lambda uow: turn_rules.record_partial_answer(uow, text, model=self._agent.model))
        else:
            await self._record_model_failure(failure(Reason.TOTAL_TIMEOUT))

    async def _record_model_failure(self, failed: ModelFailure) -> None:
        tries = self.turn.tries + 1
        most = self._agent.limits.max_attempts
        most = min(most, TRIES_OF_AN_ANSWER) if failed.repeated_once else most
        most = max(most, TRIES_AT_OUR_FAULT) if failed.detail.code is Code.RUN_DEFECT else most
        retries = replace(self._services.retries, max_attempts=most)
        delay = retries.delay(tries, retry_after=failed.retry_after, jitter=self._services.jitter())
        delay = delay if failed.retryable else None
        await self._append(lambda uow: turn_rules.record_model_failure(uow, failed.detail, tries=tries, delay=delay))
        if delay is not None and self.turn.state is TurnState.RUNNING:
            await self._back_off(delay.total_seconds())

    async def _back_off(self, seconds: float) -> None:
        """Waits before the next try. A cancellation or a drain ends the wait early; other notifications do not."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._lease.releasing:
            await self._until_notified(set(), seconds=left)
            if await self._is_interrupted():
                await self._append(lambda _: None)
                return

    # --- tools -------------------------------------------------------------------------------------------------

    async def _await_results(self) -> None:
        """Waits for the next result of a tool, and stores the results that are there.

        A cancellation or a cut ends the wait. Without a result, stores what else is due, such as the start of an
        approved call. Late results of lost owners' calls are found by reading.
        """
        late = self._awaits_late_until - time.monotonic()
        seconds = min(RESULT_POLL, late) if self._awaited_late() else RESULT_POLL
        await self._until_notified(self._tools.tasks, seconds=max(0.0, seconds))
        if self._lease.cut:
            await self._tools.stop()
            await self._hand_over()
            return
        if interrupted := await self._is_interrupted():
            await self._tools.stop()
        results = self._tools.take_results()
        if not results and not interrupted:
            await self._owned.read()
            if not isinstance(self._due_step(), AwaitResults | ResolveLost):
                await self._append(lambda _: None)
            return
        if results:
            fault("turn.tool.after_effect")
        unknown = await self._append(lambda uow: turn_rules.record_tool_results(uow, results))
        self._late_results.add(self._tools.results_stored())
        for outcome in unknown:
            reason = "TIMED_OUT" if outcome is ToolOutcome.TIMED_OUT else "CONNECTION_LOST"
            self._services.metrics.unknown_outcome(reason)

    # --- waiting and handing over ------------------------------------------------------------------------------

    async def _until_notified(self, tasks: Collection[asyncio.Task[Any]], *, seconds: float = NO_LIMIT) -> None:
        """Waits until one of the tasks is done, the run is notified, or `seconds` have passed."""
        notified = asyncio.create_task(self._lease.notified.wait())
        try:
            await asyncio.wait({notified, *tasks}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            notified.cancel()

    async def _is_interrupted(self) -> bool:
        """Returns True if a cancellation of the turn was requested. Reads the session first if the run was notified."""
        if self._lease.notified.is_set():
            self._lease.notified.clear()
            await self._owned.read()
        return self._owned.is_cancel_requested

    async def _hand_over(self) -> None:
        """Releases the turn, so that another owner may continue at once. The text of a cut message no longer counts.

        If a cancellation was requested meanwhile, cancels the turn instead, and stores the message's text so far.
        """
        preview = self._feed.preview
        cut = preview is not None and preview.local and preview.turn_id == self.turn.id
        text = preview.text() if preview is not None and cut else ""

        def decide(uow: UnitOfWork) -> bool:
            if self._owned.is_cancel_requested:
                turn_rules.record_partial_answer(uow, text, model=self._agent.model)
                self._services.add_to_changes(uow)
                self._advance(uow)
                return False
            turn_rules.hand_over(uow, cut=cut)
            return True

        self._handed_over = await self._owned.append(decide)
