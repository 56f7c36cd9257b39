"""All of this package that depends on asyncio and `grpc.aio`. `sync/wire.py` has the same names without them."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from grpc import aio

from turnkeeper_client.channel import ChannelOption
from turnkeeper_client.errors import ClientClosed, TransportError, silent
from turnkeeper_client.status import from_rpc_error

if TYPE_CHECKING:
    from turnkeeper_client.pb.v1.agent_pb2_grpc import AgentServiceAsyncStub as AgentStub
    from turnkeeper_client.pb.v1.approval_pb2_grpc import ApprovalServiceAsyncStub as ApprovalStub
    from turnkeeper_client.pb.v1.audit_pb2_grpc import AuditServiceAsyncStub as AuditStub
    from turnkeeper_client.pb.v1.chat_pb2_grpc import ChatServiceAsyncStub as ChatStub
    from turnkeeper_client.pb.v1.operator_pb2_grpc import OperatorServiceAsyncStub as OperatorStub
    from turnkeeper_client.pb.v1.session_pb2_grpc import SessionServiceAsyncStub as SessionStub

    __all__ = ["AgentStub", "ApprovalStub", "AuditStub", "ChatStub", "OperatorStub", "SessionStub"]

UnaryMethod = aio.UnaryUnaryMultiCallable
StreamCall: TypeAlias = aio.UnaryStreamCall[Any, Any]
Channel: TypeAlias = aio.Channel
Interceptor: TypeAlias = aio.ClientInterceptor
UnaryInterceptor: TypeAlias = aio.UnaryUnaryClientInterceptor
StreamInterceptor: TypeAlias = aio.UnaryStreamClientInterceptor
Lock = asyncio.Lock
sleep = asyncio.sleep


def open_channel(
    target: str,
    *,
    credentials: grpc.ChannelCredentials | None,
    options: Sequence[ChannelOption],
    interceptors: Sequence[Interceptor],
) -> Channel:
    """Returns a channel that connects with its first call."""
    if credentials is None:
        return aio.insecure_channel(target, options=options, interceptors=interceptors)
    return aio.secure_channel(target, credentials, options=options, interceptors=interceptors)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translates gRPC's errors inside the block: to SessionError, TransportError or ClientClosed."""
    try:
        yield
    except aio.AioRpcError as error:
        raise from_rpc_error(error) from None
    except aio.UsageError:
        raise ClientClosed("the client is closed; open a new one") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # The caller's task was not cancelled: the channel was closed during the call.
        raise TransportError(grpc.StatusCode.CANCELLED, "the client was closed during the call") from None


async def responses_of(call: StreamCall, *, silence: float) -> AsyncGenerator[Any, None]:
    """Yields the responses of a stream, and cancels it at the end.

    Raises TransportError after `silence` seconds without a response, and what `translated_errors` does.
    """
    try:
        while (response := await _next(call, silence)) is not None:
            yield response
    finally:
        call.cancel()


async def _next(call: StreamCall, silence: float) -> Any:
    """Returns the next response, or None at the end."""
    try:
        async with asyncio.timeout(silence):
            with translated_errors():
                return await anext(aiter(call), None)
    except TimeoutError:
        raise silent(silence) from None


async def token_of(given: str | Awaitable[str]) -> str:
    """Returns what a source of tokens gave, awaited if it is to be."""
    return await given if inspect.isawaitable(given) else given


def with_metadata(details: Any, added: Sequence[tuple[str, str]]) -> aio.ClientCallDetails:
    """Returns the details of a call with more metadata."""
    metadata = aio.Metadata(*(details.metadata or ()), *added)
    return aio.ClientCallDetails(details.method, details.timeout, metadata, details.credentials, details.wait_for_ready)
