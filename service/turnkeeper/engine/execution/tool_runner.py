"""Runs the tools of one turn's calls."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from turnkeeper.domain.tool import Call
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.spans import Spans
from turnkeeper.tools.toolbox import Finished, Toolbox

CANCEL_TIME = 1.0
"""Seconds that a cancelled tool has to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanedCall:
    """A started call that must not run twice, and its running tool, whose owner no longer surely holds its lease."""

    call: Call
    tool: asyncio.Task[Finished]


class ToolRunner:
    """The tools that one owner runs, of calls whose start is stored.

    Their tasks end with the turn's run. One that does not end when it is cancelled goes on in `detached`.
    """

    def __init__(
        self, toolbox: Toolbox, *, spans: Spans, metrics: Metrics, detached: set[asyncio.Task[Finished]]
    ) -> None:
        self._toolbox = toolbox
        self._spans = spans
        self._metrics = metrics
        self._detached = detached
        self._tasks: dict[str, asyncio.Task[Finished]] = {}
        self._calls: dict[str, Call] = {}
        self._unstored: list[asyncio.Task[Finished]] = []
        """Ended tools whose results were taken and are not in the log yet."""

    @property
    def running(self) -> frozenset[str]:
        """Returns the ids of the calls whose results were not taken yet."""
        return frozenset(self._tasks)

    @property
    def tasks(self) -> set[asyncio.Task[Finished]]:
        """Returns the tasks of those calls."""
        return set(self._tasks.values())

    def start(self, call: Call, *, timeout: timedelta) -> None:
        """Starts the call's tool in a task of its own."""
        self._tasks[call.id] = asyncio.create_task(self._run(call, timeout))
        self._calls[call.id] = call

    def take_results(self) -> list[Finished]:
        """Returns the results of the tools that have ended, each once. The caller stores them, then calls
        `results_stored`.
        """
        done = [call_id for call_id, task in self._tasks.items() if task.done()]
        tasks = [self._tasks.pop(call_id) for call_id in done]
        self._unstored = [task for task in tasks if not task.cancelled()]
        return [task.result() for task in self._unstored]

    def results_stored(self) -> None:
        """Records that the results taken last are in the log."""
        self._unstored = []

    def take_orphans(self) -> tuple[OrphanedCall, ...]:
        """Returns the calls that must not run twice and have no stored result.

        `stop` does not cancel their tools; the caller awaits them.
        """
        tools = {call_id: task for call_id, task in self._tasks.items() if self._must_not_repeat(call_id)}
        for call_id in tools:
            del self._tasks[call_id]
        tools |= {
            task.result().call_id: task for task in self._unstored if self._must_not_repeat(task.result().call_id)
        }
        return tuple(OrphanedCall(call=self._calls[call_id], tool=task) for call_id, task in tools.items())

    async def stop(self) -> None:
        """Cancels all tools, and waits for them up to CANCEL_TIME. Those that have not ended by then are detached."""
        for task in self._tasks.values():
            task.cancel()
        if not self._tasks:
            return
        await asyncio.wait(self._tasks.values(), timeout=CANCEL_TIME)
        for call_id, task in list(self._tasks.items()):
            if not task.done():
                del self._tasks[call_id]
                self._detached.add(task)
                task.add_done_callback(self._detached.discard)

    def _must_not_repeat(self, call_id: str) -> bool:
        return not self._calls[call_id].tool_class.may_start_again

    async def _run(self, call: Call, timeout: timedelta) -> Finished:
        tool_class, source = call.tool_class.value, self._toolbox.source_of(call.tool)
        with self._spans.execute_tool(
            call.tool, call_id=call.id, source=source, tool_class=tool_class, session_id=call.session_id
        ) as span:
            finished = await self._toolbox.run(call, timeout=timeout)
            outcome = finished.result.outcome.value
            span.content(arguments_json=call.arguments_json, result_json=finished.result.result_json)
            span.finished(outcome)
            seconds = finished.duration.total_seconds()
            self._metrics.tool_finished(source, tool=call.tool, tool_class=tool_class, outcome=outcome, seconds=seconds)
        return finished
