"""One wrapper around every call: span, validation, error boundary, metrics.

Facts of grpc.aio that shape it: a CancelledError raised inside a handler sends no status, so the client would hang;
AbortError is an Exception and must pass; generators are not closed in their own task when a peer leaves; a blocked
write has no timeout of its own; a status behind unread data may never arrive.
"""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import aio

from turnkeeper.errors import InternalError, InvalidRequest, NotImplementedYet, SessionError, SlowConsumer
from turnkeeper.rpc import rules
from turnkeeper.rpc.status import DETAILS_KEY, details_bytes, shown_message
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.spans import Spans

ABORT_TIME = 2.0
"""Seconds that an abort may take: it may not reach the client."""
OWN = "turnkeeper.v1."
STATUS = {code.value[0]: code for code in grpc.StatusCode}

log = logging.getLogger(__name__)
Context = aio.ServicerContext[Any, Any]
Run = Callable[[Any, Context], Awaitable[Any]]


class Boundary(aio.ServerInterceptor):
    """The only interceptor."""

    def __init__(self, *, spans: Spans, metrics: Metrics, write_timeout: float) -> None:
        """`write_timeout` in seconds: a stream whose reader accepts nothing for so long ends with SLOW_CONSUMER."""
        self._spans = spans
        self._metrics = metrics
        self._write_timeout = write_timeout
        self._peers: dict[str, int] = {}
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def until_idle(self) -> None:
        """Until no call of ours is under way; health and reflection are not ours."""
        await self._idle.wait()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Wrap the method's handler; a method that does not exist stays grpc's to refuse."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        _, service, method = str(handler_call_details.method).split("/", 2)
        own = service.startswith(OWN)
        if not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(
                self._wrapped(service, method, _unary(handler.unary_unary, own=own), handler.request_deserializer),
                None,
                handler.response_serializer,
            )
        return grpc.unary_stream_rpc_method_handler(
            self._wrapped(service, method, self._stream(handler.unary_stream, own=own), handler.request_deserializer),
            None,
            None if own else handler.response_serializer,
        )

    def _wrapped(self, service: str, method: str, run: Run, parse: Callable[[bytes], Any]) -> Run:
        async def call(data: bytes, context: Context) -> Any:
            began = time.monotonic()
            code = "CANCELLED"
            metadata: Any = context.invocation_metadata() or ()
            with (
                self._under_way(own=service.startswith(OWN)),
                self._connection(context.peer()),
                self._spans.rpc(service, method=method, metadata=metadata) as span,
            ):
                try:
                    response = await run(_parsed(data, parse), context)
                    code = "OK"
                    span.finished(code)
                    return response
                except aio.AbortError:
                    code = STATUS.get(_number(context), grpc.StatusCode.UNKNOWN).name
                    span.finished(code)
                    raise
                except aio.InternalError:
                    return None  # the peer is gone
                except BaseException as error:
                    if _must_pass(error):
                        raise
                    told = self._told(error, service, method)
                    code = told.family.name
                    span.finished(code, error=told.code.name)
                    await _abort(context, told)
                    return None  # it waits behind what is not read yet
                finally:
                    self._metrics.rpc_finished(service, method=method, code=code, seconds=time.monotonic() - began)

        return call

    def _stream(self, inner: Callable[[Any, Context], Any], *, own: bool) -> Run:
        async def run(request: Any, context: Context) -> None:
            if own:
                rules.check(request)
            if inspect.iscoroutinefunction(inner):  # grpc's own health service writes by itself
                await inner(request, context)
                return
            self._metrics.stream_opened()
            try:
                async with contextlib.aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        await self._write(context, response)
            finally:
                self._metrics.stream_closed()

        return run

    async def _write(self, context: Context, response: Any) -> None:
        try:
            async with asyncio.timeout(self._write_timeout):
                await context.write(response)
        except TimeoutError as error:
            self._metrics.slow_consumer("WRITE_TIMEOUT")
            raise SlowConsumer from error

    def _told(self, error: BaseException, service: str, method: str) -> SessionError:
        """The error that the caller is told: ours as it is, anything else as a defect that shows nothing."""
        if isinstance(error, NotImplementedError):
            error = NotImplementedYet(
                f"{method} comes with a later release; docs/reference/status.md lists what works."
            )
        if not isinstance(error, SessionError):
            log.error("%s/%s failed", service, method, exc_info=error)
            error = InternalError()
        self._metrics.error(error.code)
        return error

    @contextlib.contextmanager
    def _under_way(self, *, own: bool) -> Iterator[None]:
        self._calls += own
        if self._calls:
            self._idle.clear()
        try:
            yield
        finally:
            self._calls -= own
            if not self._calls:
                self._idle.set()

    @contextlib.contextmanager
    def _connection(self, peer: str) -> Iterator[None]:
        """A peer with at least one call under way counts as a connection."""
        self._peers[peer] = self._peers.get(peer, 0) + 1
        if self._peers[peer] == 1:
            self._metrics.connection_opened()
        try:
            yield
        finally:
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]
                self._metrics.connection_closed()


def _parsed(data: bytes, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(data)
    except DecodeError as error:
        raise InvalidRequest("The request's bytes are not a message of this method; check your stubs.") from error


def _unary(inner: Callable[[Any, Context], Awaitable[Any]], *, own: bool) -> Run:
    async def run(request: Message, context: Context) -> Any:
        if own:
            rules.check(request)
        return await inner(request, context)

    return run


def _must_pass(error: BaseException) -> bool:
    """The peer left, its deadline passed, or the server stops: nobody listens for a status.

    A cancellation that is not our task's leaked from an inner future and is a defect.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return not isinstance(error, Exception)


def _number(context: Context) -> int:
    code: Any = context.code()
    return int(code.value[0]) if isinstance(code, grpc.StatusCode) else int(code or 0)


async def _abort(context: Context, error: SessionError) -> None:
    """End the call with the error's status; at most 2 s, because it may not reach the client."""
    status = error.to_status()
    code = STATUS[int(status.family)]
    details = ((DETAILS_KEY, details_bytes(status)),)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ABORT_TIME):
            await context.abort(code, shown_message(status), details)
