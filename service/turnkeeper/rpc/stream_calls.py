"""The calls that answer with a stream: each response has its time, and each error the cursor to go on from."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from turnkeeper.admission.memory import MemoryPart
from turnkeeper.errors import SessionError, SlowConsumer, Unauthenticated
from turnkeeper.rpc.context import Context, Responses, Run
from turnkeeper.rpc.direct_writes import DirectWrites
from turnkeeper.rpc.identity import CallerCheck
from turnkeeper.rpc.refusals import CertainRefusals
from turnkeeper.rpc.status import carries_cursor
from turnkeeper.rpc.task_deadlines import TaskDeadlines
from turnkeeper.telemetry.metrics import Metrics


class StreamCalls:
    """Writes the responses of streams."""

    def __init__(
        self,
        callers: CallerCheck,
        certain_refusals: CertainRefusals,
        metrics: Metrics,
        responses: MemoryPart,
        *,
        write_timeout: float,
    ) -> None:
        """`responses` counts what is being written.

        `write_timeout`: seconds after which a stream ends with SLOW_CONSUMER if its reader accepts nothing.
        """
        self._callers = callers
        self._certain_refusals = certain_refusals
        self._metrics = metrics
        self._responses = responses
        self._writes = TaskDeadlines(write_timeout)
        self._direct = DirectWrites(write_timeout, responses, on_late=self._count_slow)

    def run_of(self, inner: Callable[[Any, Context], Responses]) -> Run:
        """Returns the method that writes what this servicer's method yields: responses as bytes."""
        return partial(self._run, inner)

    async def _run(self, inner: Callable[[Any, Context], Responses], request: Any, context: Context) -> None:
        writes, task = self._writes, asyncio.current_task()
        after = getattr(request, "after", "")
        responses: Responses | None = None
        check = self._callers.of_call(context)
        direct = self._direct.open(context, check)
        self._metrics.stream_opened()
        try:
            responses, response = await self._certain_refusals.begin(inner, request, context)
            del request  # a replica keeps thousands of streams open
            while response is not None:
                after = ""  # from here on the servicer knows where its reader goes on
                now = writes.begin(task)
                self._responses.add_large(size := len(response))
                try:
                    if now >= check.due:
                        await check.again()
                    await context.write(response)
                except (Unauthenticated, asyncio.CancelledError) as stopped:
                    raise await self._end_of(responses, stopped) from None
                finally:
                    writes.end(task)
                    self._responses.add_large(-size)
                response = await anext(responses, None)
        except SessionError as error:
            if carries_cursor(error.code) and not error.cursor:
                error.cursor = after
            raise
        finally:
            direct.close()
            if responses is not None:
                await responses.aclose()
            self._metrics.stream_closed()

    async def _end_of(self, responses: Responses, stopped: BaseException) -> BaseException:
        """Returns the error of a stream that was stopped: with its cursor, unless no client waits for it.

        Its caller may no longer read it, its reader took too long, or it is cancelled.
        """
        if isinstance(stopped, Unauthenticated):
            return await _ended_by(stopped, responses)
        if not self._writes.is_late(asyncio.current_task()):
            return stopped
        self._count_slow()
        return await _ended_by(SlowConsumer(), responses)

    def _count_slow(self) -> None:
        self._metrics.slow_consumer("WRITE_TIMEOUT")


async def _ended_by(error: SessionError, responses: Any) -> SessionError:
    """Raises the error in the servicer, which adds the cursor to resume from. Returns the error."""
    with contextlib.suppress(type(error), StopAsyncIteration):
        await responses.athrow(error)
    return error
