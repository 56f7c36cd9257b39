"""Runs the tools of one turn's calls."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

from turnkeeper.domain.tool import UNTOLD, Call, CallState, ReconciledState, ToolOutcome, ToolResult
from turnkeeper.domain.turn import ToolCaller
from turnkeeper.durations import jittered
from turnkeeper.engine.execution.call_progress import WatchedProgress
from turnkeeper.engine.execution.call_rooms import CallRooms
from turnkeeper.engine.execution.detached import CANCEL_TIME, detach
from turnkeeper.engine.execution.reconciliation import Reconciler
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.spans import Spans
from turnkeeper.tools.call_places import CallPlaces
from turnkeeper.tools.contract import Reconciled
from turnkeeper.tools.no_result import timed_out
from turnkeeper.tools.progress import CallProgress
from turnkeeper.tools.toolbox import Finished, Toolbox

FIRST_PAUSE: Final = timedelta(milliseconds=250)
"""Before the second start of a call; it doubles with each further one."""
LONGEST_PAUSE: Final = timedelta(seconds=5)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanedCall:
    """A started call that must not run twice, and its tool, which its turn no longer waits for.

    Its owner no longer surely holds its lease, or its time is over.
    """

    call: Call
    tool: asyncio.Task[Finished]
    """Ends when the tool does, however late."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """A call whose result is not stored yet."""

    call: Call
    outcome: asyncio.Task[Finished]
    """Ends with the tool, or when its time is over."""
    tool: asyncio.Task[Finished] | None = None
    """None until `outcome` has begun, and if another owner started the tool."""
    room: CallPlaces | None = None
    """What the call has a place of."""
    reconciling: bool = False
    """True from when the tool's server is requested to tell what became of the call."""

    @property
    def timed_out(self) -> bool:
        """Returns True if the result is that of a timeout, and nothing tells what became of the call."""
        finished = self.outcome.result()
        return finished.result.outcome is ToolOutcome.TIMED_OUT and not _tells(finished.reconciled)

    @property
    def orphans(self) -> tuple[OrphanedCall, ...]:
        """Returns the call if it was started and must not run twice, otherwise nothing."""
        if self.tool is None or self.call.tool_class.may_start_again:
            return ()
        return (OrphanedCall(call=self.call, tool=self.tool),)

    def leave_room(self) -> None:
        """Gives the call's place back once its tool has ended, or will never run."""
        if self.room is not None and (self.tool is None or self.tool.done()):
            self.room.give_back()
            self.room = None

    def cancel(self) -> None:
        """Cancels the tool, or its start, or the request that follows it."""
        (self.tool if self.tool and not self.reconciling else self.outcome).cancel()


class ToolRunner:
    """The tools that one owner runs, of calls whose start is stored.

    Their tasks end with the turn's run. A tool that does not end when it is cancelled goes on in `detached`. So does
    one whose time is over: no timeout depends on the tool's own code.
    """

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        toolbox: Toolbox,
        *,
        caller: ToolCaller,
        spans: Spans,
        metrics: Metrics,
        detached: set[asyncio.Task[Any]],
        hold: Callable[[], Awaitable[None]],
        jitter: Callable[[], float] = lambda: 0.5,
        reconciler: Reconciler | None = None,
        progress: WatchedProgress | None = None,
    ) -> None:
        """`reconciler` requests what became of calls whose results are missing; without one a person is.

        `hold` returns while the owner's lease is surely held, and raises LeaseLost if it is lost: it is awaited before
        a tool starts that had to wait. `jitter` returns a random number from 0 to 1, which spreads the pauses.
        `progress` shows how far the tools are; without it nothing does.
        """
        self._toolbox = toolbox
        self._caller = caller
        self._spans = spans
        self._metrics = metrics
        self._detached = detached
        self._hold = hold
        self._jitter = jitter
        self._reconciler = reconciler
        self._progress = progress
        self.rooms = CallRooms(toolbox, record=self._record_unrun)
        """The places of the calls, where only so many run at the same time."""
        self._reconciled = set[tuple[str, int]]()
        """Calls, with the attempts that started them, of which the tools' servers were requested to tell."""
        self._runs: dict[str, _Run] = {}
        self._unstored: list[_Run] = []
        """Those whose results were taken and are not in the log yet."""

    @property
    def running(self) -> frozenset[str]:
        """Returns the ids of the calls whose results were not taken yet, and of those that wait for room."""
        return frozenset(self._runs) | self.rooms.waiting

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        """Returns a task for each of those calls. It ends when there is a result to take, or room."""
        return {*(run.outcome for run in self._runs.values()), *self.rooms.tasks}

    def start(self, call: Call, *, timeout: timedelta) -> None:
        """Starts the call's tool in a task of its own, after a pause if a try of the call has failed before.

        The place that it has in `rooms` is free again when the tool has ended, however late.
        """
        outcome = asyncio.create_task(self._outcome(call, timeout))
        run = self._runs[call.id] = _Run(call=call, outcome=outcome, room=self.rooms.place_of(call))
        outcome.add_done_callback(lambda _: run.leave_room())

    def reconcile_lost(self, calls: Collection[Call], *, time_of: Callable[[Call], timedelta]) -> None:
        """Requests of the tools' servers what became of a lost owner's calls that must not run twice.

        Each attempt once. Until an answer comes, the call counts as running. `time_of` returns how long a tool may run.
        """
        for call in calls:
            if call.id not in self._runs and call.late_result is None and self._is_in_question(call):
                run = _Run(call=call, outcome=asyncio.create_task(self._lost(call, time_of(call))), reconciling=True)
                self._runs[call.id] = run

    def take_results(self) -> list[Finished]:
        """Returns the results of the tools that have ended or timed out, each once. The caller stores them, then calls
        `results_stored`.
        """
        done = [self._runs.pop(call_id) for call_id, run in list(self._runs.items()) if run.outcome.done()]
        self._unstored = [run for run in done if not run.outcome.cancelled()]
        return [*(run.outcome.result() for run in self._unstored), *self.rooms.take_results()]

    def results_stored(self) -> tuple[OrphanedCall, ...]:
        """Records that the results taken last are in the log. Returns the calls that timed out and must not run twice.

        Their outcomes are unknown until their tools end; the caller awaits them.
        """
        stored, self._unstored = self._unstored, []
        return tuple(orphan for run in stored if run.timed_out for orphan in run.orphans)

    def take_orphans(self) -> tuple[OrphanedCall, ...]:
        """Returns the calls that must not run twice and have no stored result.

        `stop` does not cancel their tools; the caller awaits them.
        """
        orphans = tuple(orphan for run in (*self._runs.values(), *self._unstored) for orphan in run.orphans)
        for orphan in orphans:
            run = self._runs.pop(orphan.call.id, None)
            if run is not None and run.reconciling:
                run.outcome.cancel()  # the next owner requests it
        return orphans

    async def stop(self) -> None:
        """Cancels all tools, and waits for them up to CANCEL_TIME. Those that have not ended by then are detached."""
        self.rooms.stop()
        running = [run for run in self._runs.values() if not run.outcome.done()]
        for run in running:
            run.cancel()
        if not running:
            return
        try:
            await asyncio.wait([run.outcome for run in running], timeout=CANCEL_TIME)
        finally:
            for run in running:
                if not run.outcome.done():
                    self._leave(run)

    def _leave(self, run: _Run) -> None:
        """Waits no longer for a cancelled tool."""
        del self._runs[run.call.id]
        run.outcome.cancel()
        self._detach(run.tool)
        self._metrics.call_detached("TOOL")
        logger.warning(
            "the cancelled tool %s did not end within %g s: it is left behind, and its turn goes on without it",
            *(run.call.tool, CANCEL_TIME),
            extra={"session": run.call.session_id, "turn": run.call.turn_id},
        )

    async def _outcome(self, call: Call, timeout: timedelta) -> Finished:
        """Runs the tool, and returns its result, with what its server tells if the result does not tell its effect."""
        if pause := retry_pause(call, self._jitter()):
            await asyncio.sleep(pause.total_seconds())
            await self._hold()
        finished = await self._ran(call, timeout)
        run = self._runs.get(call.id)
        if run is None or finished.result.outcome not in UNTOLD or not self._is_in_question(call):
            return finished
        run.reconciling = True
        return replace(finished, reconciled=await self._answer(call, timedelta()))

    async def _lost(self, call: Call, timeout: timedelta) -> Finished:
        """Returns what its tool's server tells of a call that another owner had started."""
        result = ToolResult(outcome=ToolOutcome.UNKNOWN, result_json="null")
        answer = await self._answer(call, timeout)
        return Finished(call_id=call.id, result=result, attempt=call.attempt, duration=timedelta(), reconciled=answer)

    def _is_in_question(self, call: Call) -> bool:
        """Returns True if the tool's server must be requested to tell what became of the call."""
        return (
            self._reconciler is not None
            and call.state is CallState.STARTED
            and not call.tool_class.may_start_again
            and (call.id, call.attempt) not in self._reconciled
            and self._toolbox.reconciles(call)
        )

    async def _answer(self, call: Call, running_for: timedelta) -> Reconciled | None:
        self._reconciled.add((call.id, call.attempt))
        return await self._reconciler.answer(call, running_for=running_for) if self._reconciler else None

    async def _ran(self, call: Call, timeout: timedelta) -> Finished:
        """Runs the tool, and returns its result; the one of a timeout if it has not ended by then."""
        tool_class, source = call.tool_class.value, self._toolbox.source_of(call.tool)
        with self._spans.execute_tool(
            call.tool, call_id=call.id, source=source, tool_class=tool_class, session_id=call.session_id
        ) as span:
            record = partial(self._metrics.tool_finished, source, tool=call.tool, tool_class=tool_class)
            began = time.monotonic()
            try:
                finished = await self._run(call, timeout)
            except asyncio.CancelledError:
                span.finished(ToolOutcome.CANCELLED)
                record(outcome=ToolOutcome.CANCELLED, seconds=time.monotonic() - began)
                raise
            outcome = finished.result.outcome.value
            span.content(arguments_json=call.arguments_json, result_json=finished.result.result_json)
            span.finished(outcome)
            record(outcome=outcome, seconds=finished.duration.total_seconds())
        return finished

    async def _run(self, call: Call, timeout: timedelta) -> Finished:
        """Runs the tool for `timeout` at most."""
        run = self._runs[call.id]
        with self._shown(call) as report:
            tool = run.tool = asyncio.create_task(
                self._toolbox.run(call, timeout=timeout, caller=self._caller, report=report)
            )
            tool.add_done_callback(lambda _: run.leave_room())
            await asyncio.wait([tool], timeout=timeout.total_seconds())
        return tool.result() if tool.done() else self._overdue(call, tool, timeout)

    @contextmanager
    def _shown(self, call: Call) -> Iterator[Callable[[str], None]]:
        """Returns what takes lines about how far the call is, for a `with` block; later ones go nowhere."""
        if self._progress is None:
            yield lambda _: None
            return
        lines = CallProgress(partial(self._progress.show, call))
        try:
            yield lines.report
        finally:
            lines.close()
            self._progress.end(call)

    def _overdue(self, call: Call, tool: asyncio.Task[Finished], timeout: timedelta) -> Finished:
        """Returns the result of a timeout. Cancels the tool unless its late result may still tell what was done."""
        if call.tool_class.may_start_again:
            tool.cancel()
        self._detach(tool)
        return timed_out(call, timeout, most_starts=self._toolbox.attempts_of(call.tool))

    def _record_unrun(self, call: Call, finished: Finished) -> None:
        """Counts a call that got no room in its time."""
        self._metrics.tool_finished(
            self._toolbox.source_of(call.tool),
            tool=call.tool,
            tool_class=call.tool_class.value,
            outcome=finished.result.outcome.value,
            seconds=finished.duration.total_seconds(),
        )

    def _detach(self, tool: asyncio.Task[Finished] | None) -> None:
        if tool is not None:
            detach(tool, self._detached)


def _tells(answer: Reconciled | None) -> bool:
    return answer is not None and answer.state not in (ReconciledState.UNKNOWN, ReconciledState.NO_ANSWER)


def retry_pause(call: Call, jitter: float) -> timedelta:
    """Returns how long a call waits before it starts again. One that must not run twice starts at once, if at all.

    `jitter` from 0 to 1 spreads the time.
    """
    if call.starts < 2 or not call.tool_class.may_start_again:
        return timedelta()
    return jittered(min(FIRST_PAUSE * 2.0 ** min(call.starts - 2, 30), LONGEST_PAUSE), jitter)
