"""One wrapper around every call: admission, caller, body, span, validation, error boundary, metrics.

It turns methods that take one message into methods that take many: a call is then admitted or refused at its headers,
and only then its body is read. Plain clients see no difference.

Facts of grpc.aio that shape it. A CancelledError raised inside a handler sends no status, so the client would hang.
AbortError is an Exception and must pass. Generators are not closed in their own task when a peer leaves. A blocked
write has no timeout of its own. A status behind unread data may never arrive.
"""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from turnkeeper.admission.gate import CURRENT, Gate, Kind, add_turn
from turnkeeper.errors import (
    InternalError,
    InvalidRequest,
    NotImplementedYet,
    Overloaded,
    SessionError,
)
from turnkeeper.event_loop import off_loop
from turnkeeper.isolation import ends_task
from turnkeeper.limits.limiter import Method
from turnkeeper.rpc import validation
from turnkeeper.rpc.access import Access, AccessRules
from turnkeeper.rpc.bodies import Bodies, BodyLate
from turnkeeper.rpc.context import UNREADABLE, Context, Responses, Run
from turnkeeper.rpc.ended_calls import forget_frames
from turnkeeper.rpc.endings import ABORT_TIME, abort, is_first_attempt, refusal_ending, status_of, unanswered
from turnkeeper.rpc.free_streams import FreeStreams
from turnkeeper.rpc.identity import CallerCheck
from turnkeeper.rpc.kinds import adds_turn, kind_of
from turnkeeper.rpc.limits import LimitCheck, limited_method
from turnkeeper.rpc.refusals import CertainRefusals
from turnkeeper.rpc.refused_calls import RefusedCalls
from turnkeeper.rpc.stream_calls import StreamCalls
from turnkeeper.rpc.task_deadlines import TaskDeadlines
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.open_spans import RpcSpan
from turnkeeper.telemetry.spans import Spans

LARGE_BYTES = 256 * 1024
"""A request with more bytes is parsed in a thread: 4 MiB may be two million entries."""
HEALTH_BYTES = 32 << 20
"""Bytes of the bodies of health and reflection that are being received: they wait for no body of another service."""
OWN = "turnkeeper.v1."

logger = logging.getLogger(__name__)


class Boundary(aio.ServerInterceptor):
    """The only interceptor: it wraps every method once, and counts the calls that are under way."""

    def __init__(  # noqa: PLR0913 - the parts it is made of
        self,
        *,
        callers: CallerCheck,
        access: AccessRules,
        spans: Spans,
        metrics: Metrics,
        gate: Gate,
        certain_refusals: CertainRefusals,
        limits: LimitCheck,
        refused_calls: RefusedCalls,
        write_timeout: float,
    ) -> None:
        """`write_timeout`: seconds after which a stream ends with SLOW_CONSUMER if its reader accepts nothing."""
        self._callers = callers
        self._access = access
        self._limits = limits
        self._refused_calls = refused_calls
        self._gate = gate
        memory = gate.memory
        self._bodies = Bodies(memory)
        self._health_bodies = Bodies(memory, part="health_bodies", most=HEALTH_BYTES)
        self._free_streams = FreeStreams(gate)
        self._certain_refusals = certain_refusals
        self._spans = spans
        self._metrics = metrics
        self._streams = StreamCalls(
            callers, certain_refusals, metrics, memory.part("responses"), write_timeout=write_timeout
        )
        self._refusing = TaskDeadlines(ABORT_TIME)
        self._methods: dict[str, Any] = {}
        self._peers: dict[str, int] = {}
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.refuse: Callable[[], SessionError] | None = None
        """While it is set, each new call of our own services ends with the error that it returns."""

    async def until_idle(self) -> None:
        """Waits until no call of our own services is under way. Health and reflection do not count."""
        await self._idle.wait()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Returns the method's handler, wrapped once. gRPC itself refuses a method that does not exist."""
        path = str(handler_call_details.method)
        if path not in self._methods:
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler
            self._methods[path] = self._handler(path, handler)
        return self._methods[path]

    def _handler(self, path: str, handler: Any) -> Any:
        _, service, method = path.split("/", 2)
        own = service.startswith(OWN)
        if handler.request_streaming:  # reflection
            checked = self._checked_stream(path[1:], handler.stream_stream, self._access.of(service, method))
            return grpc.stream_stream_rpc_method_handler(checked, None, handler.response_serializer)
        if not handler.response_streaming:
            unary = handler.unary_unary
            if own:
                unary = self._callers.checked_at_its_end(self._certain_refusals.checked(unary))
            call = self._wrapped(service, method, handler, unary)
            return grpc.stream_unary_rpc_method_handler(call, None, handler.response_serializer)
        inner = handler.unary_stream
        # Health.Watch writes its responses itself
        run = self._free(inner) if inspect.iscoroutinefunction(inner) else self._streams.run_of(inner)
        call = self._wrapped(service, method, handler, run)
        return grpc.stream_stream_rpc_method_handler(call, None, None if own else handler.response_serializer)

    def _wrapped(self, service: str, method: str, handler: Any, run: Run) -> Run:
        own, parse = service.startswith(OWN), handler.request_deserializer
        kind = kind_of(method, is_stream=handler.response_streaming) if own else None
        access = self._access.of(service, method)
        limits = limited_method(method, is_stream=handler.response_streaming)

        async def call(context: Context) -> Any:
            began = time.monotonic()
            code, peer = "CANCELLED", context.peer()
            self._enter(peer, own=own)
            try:
                with self._spans.rpc(service, method=method, metadata=context.invocation_metadata() or ()) as span:
                    try:
                        if own and self.refuse is not None:
                            raise self.refuse()
                        await self._callers.check(context, access)
                        if limits.adds_turn:
                            add_turn()
                        request = await self._request(context, kind, limits, parse)
                        response = await run(_named(request, span), context)
                        _name_result(response, span)
                        code = "OK"
                    except aio.AbortError:
                        code = status_of(context).name
                        span.finished(code)
                        raise
                    except aio.InternalError:
                        code = unanswered(context)
                        span.finished(code)
                        return None  # the client has left
                    except BaseException as error:
                        if ends_task(
                            error
                        ):  # the client left, its deadline passed, or the server stops: no client waits
                            code = unanswered(context)
                            span.finished(code)
                            raise
                        shown = self._shown(error, service, method)
                        self._refused_calls.note(shown, context, f"{service}/{method}")
                        code = shown.family.name
                        span.finished(code, error=shown.code.name)
                        shown.__traceback__ = None  # it holds this frame, which holds the error: a cycle
                        await abort(context, shown, on_stream=handler.response_streaming)
                        return None  # the status waits behind responses that the client has not read
                    finally:
                        self._metrics.rpc_finished(service, method=method, code=code, seconds=time.monotonic() - began)
                    span.finished(code)
                    return response
            finally:
                self._leave(peer, own=own)

        return self._gated(kind, call, service, method, on_stream=handler.response_streaming)

    def _checked_stream(self, name: str, inner: Callable[[Any, Context], Responses], access: Access) -> Any:
        """Returns the handler of a stream of requests, whose caller is checked before the first one is read."""

        async def run(requests: Any, context: Context) -> Responses:
            with contextlib.ExitStack() as counted:
                try:
                    await self._callers.check(context, access)
                    counted.enter_context(self._free_streams.open(context.peer()))
                except SessionError as refusal:
                    self._metrics.error(refusal.code)
                    self._refused_calls.note(refusal, context, name)
                    await abort(context, refusal, on_stream=True)
                    return
                async for response in inner(requests, context):
                    yield response

        return run

    def _free(self, inner: Run) -> Run:
        async def run(request: Any, context: Context) -> Any:
            with self._free_streams.open(context.peer()):
                return await inner(request, context)

        return run

    def _gated(
        self,
        kind: Kind | None,
        call: Callable[[Context], Awaitable[Any]],
        service: str,
        method: str,
        *,
        on_stream: bool,
    ) -> Run:
        """Returns the method's handler. A call that is refused costs no span, and its body is not read."""
        turns = adds_turn(method)

        async def gated(_: object, context: Context) -> Any:
            try:
                if kind is None:
                    return await call(context)
                left: float | None = context.time_remaining()
                if left is not None and left <= 0:  # its caller no longer waits
                    self._metrics.rpc_finished(service, method=method, code="DEADLINE_EXCEEDED", seconds=0.0)
                    await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "The deadline passed before the call began.")
                try:
                    if not self._bodies.has_room_for(context.peer()):
                        raise self._gate.refused(kind, "body")
                    admitted = self._gate.admit(kind, adds_turn=turns)
                except Overloaded as refusal:
                    self._metrics.rpc_finished(service, method=method, code=refusal.family.name, seconds=0.0)
                    self._metrics.error(refusal.code)
                    await self._refuse(context, refusal, on_stream=on_stream)
                    return None
                if left is not None:
                    admitted.wanted_until = time.monotonic() + left
                CURRENT.set(admitted)
                try:
                    return await call(context)
                finally:
                    admitted.end()
            except aio.AbortError as error:
                forget_frames(error)
                return None

        return gated

    async def _refuse(self, context: Context, refusal: Overloaded, *, on_stream: bool) -> None:
        """Ends a call that was not admitted. In an overload most calls end here: it costs as little as it can."""
        task = asyncio.current_task()
        self._refusing.begin(task)
        try:
            limit, is_first = refusal.metadata["limit"], is_first_attempt(context)
            await context.abort(*refusal_ending(limit, refusal.retry_after, on_stream, is_first))
        except asyncio.CancelledError:
            if not self._refusing.is_late(task):
                raise
        finally:
            self._refusing.end(task)

    async def _request(self, context: Context, kind: Kind | None, method: Method, parse: Callable[[bytes], Any]) -> Any:
        """Returns the request of a call whose caller was checked, after it was charged to the caller's limits."""
        read = partial(self._body, context, kind)
        if kind is None:
            return await _parsed(await read(), parse, checked=False)
        body = await self._limits.enter(context, method, read=read, parse=parse)
        request = await _parsed(body, parse, checked=True)
        self._limits.admitted(context, method, request, body)
        return request

    async def _body(self, context: Context, kind: Kind | None) -> bytes:
        try:
            body = await (self._bodies if kind else self._health_bodies).read(context)
        except BodyLate:
            raise self._gate.refused(kind or Kind.READ, "body") from None
        if (call := CURRENT.get()) is not None:
            call.hold(len(body))
        return body

    def _shown(self, error: BaseException, service: str, method: str) -> SessionError:
        """Returns the error that the caller sees: a SessionError as it is, any other as INTERNAL without its text."""
        if isinstance(error, NotImplementedError):  # as gRPC's generated base class raises it for a later method
            error = NotImplementedYet(
                f"{method} comes with a later release; docs/reference/status.md lists what works."
            )
        if not isinstance(error, SessionError):
            logger.error("%s/%s failed: a defect; the caller gets INTERNAL_ERROR", service, method, exc_info=error)
            error = InternalError()
        self._metrics.error(error.code)
        return error

    def _enter(self, peer: str, *, own: bool) -> None:
        """Counts a call. A peer with at least one call under way counts as a connection."""
        self._calls += own
        if self._calls:
            self._idle.clear()
        self._peers[peer] = self._peers.get(peer, 0) + 1
        if self._peers[peer] == 1:
            self._metrics.connection_opened()

    def _leave(self, peer: str, *, own: bool) -> None:
        self._calls -= own
        if not self._calls:
            self._idle.set()
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]
            self._metrics.connection_closed()


async def _parsed(data: bytes, parse: Callable[[bytes], Any], *, checked: bool) -> Any:
    """Returns the request. Raises InvalidRequest if the bytes are none, and what `validation.check` raises."""
    try:
        request = await off_loop(partial(parse, data), large=len(data) > LARGE_BYTES)
    except DecodeError as error:
        raise InvalidRequest(UNREADABLE) from error
    if checked:
        validation.check(request)
    return request


def _named(request: Any, span: RpcSpan) -> Any:
    """Returns the request, after the span got the session and the turn that it names."""
    if span.recording:
        span.concerns(session_id=getattr(request, "session_id", ""), turn_id=getattr(request, "turn_id", ""))
    return request


def _name_result(response: Any, span: RpcSpan) -> None:
    """Gives the span the session and the turn of what a unary call returns."""
    if span.recording:
        for field in ("session", "turn", "approval"):
            if (part := getattr(response, field, None)) is not None:
                span.concerns(session_id=part.session_id, turn_id=getattr(part, "turn_id", ""))
