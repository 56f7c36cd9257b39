"""Accepts many calls at once, so that calls do not wait where no code of ours sees them.

grpc.aio takes one call at a time from its core, which needs two iterations of the event loop. Under load an iteration
takes milliseconds: a few hundred calls a second get in, refused ones included, and the rest waits in the core.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from grpc import aio
from grpc._cython import cygrpc
from grpc.aio import _server as grpc_server

AT_ONCE: Final = 32
"""Calls that gRPC's core may hand over in one iteration of the loop."""


class AcceptingServer(grpc_server.Server, aio.Server):  # type: ignore[misc]  # the former has no types
    """gRPC's server, which waits for AT_ONCE calls instead of one."""

    def __init__(self, *, interceptors: Sequence[Any], options: Sequence[tuple[str, int]]) -> None:
        """`options` are gRPC's own."""
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(self._loop, None, (), tuple(interceptors), tuple(options), None)


class _Core(cygrpc.AioServer):  # type: ignore[misc]  # it has no types
    """The part of the server that takes calls from gRPC's core."""

    async def _request_call(self) -> Any:
        """Returns the next call. Called by gRPC, for one call at a time."""
        if not hasattr(self, "_requested"):
            self._requested = deque(self._request() for _ in range(AT_ONCE))
        accepted = self._requested.popleft()
        self._requested.append(self._request())
        return accepted.result() if accepted.done() else await accepted

    def _request(self) -> asyncio.Task[Any]:
        request = asyncio.get_running_loop().create_task(super()._request_call())
        request.add_done_callback(_retrieve)
        return request


def _retrieve(request: asyncio.Task[Any]) -> None:
    """Retrieves the error of a request that a stopped server does not wait for, so that asyncio does not report it."""
    with suppress(BaseException):
        request.exception()
