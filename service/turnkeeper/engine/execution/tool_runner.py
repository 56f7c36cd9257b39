"""The tools that one owner has in hand."""

import asyncio
from datetime import timedelta

from turnkeeper.domain.tool import Call
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.spans import Spans
from turnkeeper.tools.toolbox import Finished, Toolbox

DEAF_TIME = 1.0
"""Seconds that a cancelled tool has to end."""


class ToolRunner:
    """Calls whose start is stored. Their tasks end with the run, or, when they do not listen, in `strays`."""

    def __init__(
        self, toolbox: Toolbox, *, spans: Spans, metrics: Metrics, strays: set[asyncio.Task[Finished]]
    ) -> None:
        self._toolbox = toolbox
        self._spans = spans
        self._metrics = metrics
        self._strays = strays
        self._tasks: dict[str, asyncio.Task[Finished]] = {}
        self._calls: dict[str, Call] = {}
        self._taken: list[asyncio.Task[Finished]] = []

    @property
    def calls(self) -> frozenset[str]:
        """The ids of the calls."""
        return frozenset(self._tasks)

    @property
    def tasks(self) -> set[asyncio.Task[Finished]]:
        return set(self._tasks.values())

    def start(self, call: Call, *, timeout: timedelta) -> None:
        self._tasks[call.id] = asyncio.create_task(self._run(call, timeout))
        self._calls[call.id] = call

    def take_results(self) -> list[Finished]:
        """What is done; it is in hand no longer. Say `stored` once that is so."""
        done = [call_id for call_id, task in self._tasks.items() if task.done()]
        tasks = [self._tasks.pop(call_id) for call_id in done]
        self._taken = [task for task in tasks if not task.cancelled()]
        return [task.result() for task in self._taken]

    def stored(self) -> None:
        """The results that were taken last are in the log."""
        self._taken = []

    def leave(self) -> tuple[tuple[Call, asyncio.Task[Finished]], ...]:
        """Calls that must not run twice, with their tools: out of hand, not cancelled, their results not stored."""
        left = {call_id: task for call_id, task in self._tasks.items() if self._must_not_repeat(call_id)}
        for call_id in left:
            del self._tasks[call_id]
        left |= {task.result().call_id: task for task in self._taken if self._must_not_repeat(task.result().call_id)}
        return tuple((self._calls[call_id], task) for call_id, task in left.items())

    def _must_not_repeat(self, call_id: str) -> bool:
        return not self._calls[call_id].tool_class.may_start_again

    async def stop(self) -> None:
        """Cancel them. One that does not listen is out of hand, but kept from being forgotten."""
        for task in self._tasks.values():
            task.cancel()
        if not self._tasks:
            return
        await asyncio.wait(self._tasks.values(), timeout=DEAF_TIME)
        for call_id, task in list(self._tasks.items()):
            if not task.done():
                del self._tasks[call_id]
                self._strays.add(task)
                task.add_done_callback(self._strays.discard)

    async def _run(self, call: Call, timeout: timedelta) -> Finished:
        tool_class, source = call.tool_class.value, "python"
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
