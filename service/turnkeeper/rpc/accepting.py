"""Accepts calls, and hands them over connection by connection: no connection's burst keeps the calls of others out.

grpc.aio takes one call at a time from its core, in the order in which they came, which needs two iterations of the
event loop. To take a call costs a sixth of what its handler costs at least. So all calls are taken at once and wait
here, where each connection has a line of its own. An iteration of the loop begins only as many of them as leave the
calls under way their time.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
from grpc import aio
from grpc._cython import cygrpc
from grpc.aio import _server as grpc_server

AT_ONCE: Final = 512
"""Calls that gRPC's core may hand over in one iteration of the loop: 10 ms of work, and 1 MiB while it waits for them.

What is beyond it waits in the core, where all calls stand in one line.
"""
LEAST: Final = 16
"""Calls that are begun in one iteration of the loop, at least."""
PER_SECOND: Final = 1000
"""Calls that are begun besides, for each second of CPU since the last ones were begun. A refused one costs 0.2 ms.

So new calls have a sixth of the CPU where iterations are long, and more where they are short. By the wall clock they
would have ever more on a busy machine: what they cost would make the iteration longer, and let more of them begin.
"""


class AcceptingServer(grpc_server.Server, aio.Server):  # type: ignore[misc]  # the former has no types
    """gRPC's server, which waits for AT_ONCE calls instead of one, and begins them in a fair order."""

    def __init__(self, *, interceptors: Sequence[Any], options: Sequence[tuple[str, int]]) -> None:
        """`options` are gRPC's own."""
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(self._loop, None, (), tuple(interceptors), tuple(options), None)


class FairLines:
    """Calls that wait to be begun: each connection's in the order in which they came, the connections by turns."""

    def __init__(self, *, clock: Callable[[], float] = time.thread_time) -> None:
        """`clock` returns the seconds of CPU that the loop's thread has used."""
        self._clock = clock
        self._lines: OrderedDict[str, deque[Any]] = OrderedDict()
        self._left = LEAST
        """Calls that may be begun in this iteration of the loop."""
        self._has_begun = False
        """Whether some were."""
        self._begun_at = 0.0
        """When the last ones were. `take` may be woken an iteration late: the time of both then counts."""
        self._is_counting = False
        self._waiter: asyncio.Future[None] | None = None
        """Done once there is a call that may be begun, or an error."""
        self._error: BaseException | None = None

    def put(self, peer: str, call: Any) -> None:
        """Adds a call of this connection."""
        line = self._lines.get(peer)
        if line is None:
            line = self._lines[peer] = deque()
        line.append(call)
        self._notify()

    async def take(self) -> Any:
        """Returns the next call, in this iteration of the loop or a later one. One caller at a time.

        Raises the error of `end`.
        """
        while not self._may_begin:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        if not self._has_begun:
            self._has_begun, self._begun_at = True, self._clock()
        if not self._is_counting:
            self._is_counting = True
            asyncio.get_running_loop().call_soon(self._on_iteration)
        self._left -= 1
        peer, line = self._lines.popitem(last=False)
        call = line.popleft()
        if line:
            self._lines[peer] = line  # behind all others
        return call

    def end(self, error: BaseException) -> Sequence[Any]:
        """Lets `take` raise the error from now on. Returns the calls that are not begun any more."""
        calls = [call for line in self._lines.values() for call in line]
        self._lines.clear()
        self._error = error
        self._notify()
        return calls

    @property
    def _may_begin(self) -> bool:
        return self._error is not None or (self._left > 0 and bool(self._lines))

    def _on_iteration(self) -> None:
        """Called in the iteration after one in which calls were begun, or waited."""
        self._is_counting = bool(self._lines)
        self._has_begun = False
        self._left = LEAST
        if self._is_counting:
            self._left += int(PER_SECOND * (self._clock() - self._begun_at))
            asyncio.get_running_loop().call_soon(self._on_iteration)
        self._notify()

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done() and self._may_begin:
            self._waiter.set_result(None)


class _Core(cygrpc.AioServer):  # type: ignore[misc]  # it has no types
    """The part of the server that takes calls from gRPC's core."""

    async def _request_call(self) -> Any:
        """Returns the next call. Called by gRPC, for one call at a time. Raises gRPC's error once the server stops."""
        if not hasattr(self, "_waiting"):
            self._waiting = FairLines()
            self._tasks = {asyncio.create_task(self._take_calls()) for _ in range(AT_ONCE)}
        return await self._waiting.take()

    async def _take_calls(self) -> None:
        """Takes one call after the other, until the server stops. Then ends those that were not begun."""
        while True:
            try:
                self._add(await super()._request_call())  # a name in this frame would keep the call until the next one
            except Exception as stopped:  # noqa: BLE001 - `_request_call` raises it
                await asyncio.gather(*map(self._end, self._waiting.end(stopped)), return_exceptions=True)
                return

    def _add(self, call: Any) -> None:
        self._waiting.put(self._context(call).peer(), call)

    async def _end(self, call: Any) -> None:
        await self._context(call).abort(grpc.StatusCode.UNAVAILABLE, "The server stops: send the call again.")

    def _context(self, call: Any) -> Any:
        return cygrpc._ServicerContext(call, None, None, cygrpc.get_working_loop())  # noqa: SLF001 - there is no other
