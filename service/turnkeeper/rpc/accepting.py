"""Accepts many calls at once, so that calls do not wait where no code of ours sees them.

grpc.aio takes one call at a time from its core, which needs two iterations of the event loop. Under load an iteration
takes milliseconds: a few hundred calls a second get in, refused ones included, and the rest waits in the core.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from grpc import aio
from grpc._cython import cygrpc
from grpc.aio import _server as grpc_server

AT_ONCE: Final = 128
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
        if not hasattr(self, "_accepted"):
            self._accepted = asyncio.Queue[asyncio.Task[Any]]()
            self._requests = {self._request() for _ in range(AT_ONCE)}
        accepted = await self._accepted.get()
        self._requests.discard(accepted)
        self._requests.add(self._request())
        return accepted.result()

    def _request(self) -> asyncio.Task[Any]:
        request = asyncio.get_running_loop().create_task(super()._request_call())
        request.add_done_callback(self._accept)
        return request

    def _accept(self, request: asyncio.Task[Any]) -> None:
        """Hands an accepted call over. Retrieves the error of a stopped server, so that asyncio does not report it."""
        with suppress(BaseException):
            request.exception()
        self._accepted.put_nowait(request)
