"""What `turnkeeper_client.wire` has, on gRPC's synchronous calls."""

import os
import threading
import time
from collections.abc import Awaitable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, cast

import grpc

from turnkeeper_client.channel import ChannelOption
from turnkeeper_client.errors import ClientClosed, silent
from turnkeeper_client.status import Failure, from_rpc_error

if TYPE_CHECKING:
    from grpc import UnaryUnaryMultiCallable as UnaryMethod
    from grpc import _CallIterator

    from turnkeeper_client.pb.v1.agent_pb2_grpc import AgentServiceStub as AgentStub
    from turnkeeper_client.pb.v1.approval_pb2_grpc import ApprovalServiceStub as ApprovalStub
    from turnkeeper_client.pb.v1.audit_pb2_grpc import AuditServiceStub as AuditStub
    from turnkeeper_client.pb.v1.chat_pb2_grpc import ChatServiceStub as ChatStub
    from turnkeeper_client.pb.v1.operator_pb2_grpc import OperatorServiceStub as OperatorStub
    from turnkeeper_client.pb.v1.session_pb2_grpc import SessionServiceStub as SessionStub

    __all__ = [
        "AgentStub",
        "ApprovalStub",
        "AuditStub",
        "ChatStub",
        "OperatorStub",
        "SessionStub",
        "UnaryMethod",
    ]
    StreamCall: TypeAlias = _CallIterator[Any]
else:
    # gRPC's classes take no parameters at run time, and those of its calls have no public names.
    StreamCall = Any

Interceptor: TypeAlias = grpc.UnaryUnaryClientInterceptor | grpc.UnaryStreamClientInterceptor
UnaryInterceptor: TypeAlias = grpc.UnaryUnaryClientInterceptor
StreamInterceptor: TypeAlias = grpc.UnaryStreamClientInterceptor
Lock = threading.Lock
sleep = time.sleep

CLOSED = "the client is closed; open a new one"
FORKED = (
    "this process was forked after the client's first call, and gRPC's threads stayed behind;"
    " make a client, or its first call, in each process"
)


class Channel(grpc.Channel):
    """A channel that is opened by its first call, so that a process can fork before it. May be used by many threads."""

    def __init__(
        self,
        target: str,
        credentials: grpc.ChannelCredentials | None,
        options: Sequence[ChannelOption],
        interceptors: Sequence[Interceptor],
    ) -> None:
        self._target = target
        self._credentials = credentials
        self._options = options
        self._interceptors = interceptors
        self._lock = Lock()
        self._process = 0
        self._closed = False
        self._opened: grpc.Channel | None = None

    def opened(self) -> grpc.Channel:
        """Returns the open channel. Raises ClientClosed."""
        with self._lock:
            if self._closed:
                raise ClientClosed(CLOSED)
            if self._opened is None:
                self._opened, self._process = self._open(), os.getpid()
            elif self._process != os.getpid():
                raise ClientClosed(FORKED)
            return self._opened

    def _open(self) -> grpc.Channel:
        if self._credentials is None:
            channel = grpc.insecure_channel(self._target, options=self._options)
        else:
            channel = grpc.secure_channel(self._target, self._credentials, options=self._options)
        return grpc.intercept_channel(channel, *self._interceptors) if self._interceptors else channel

    def close(self) -> None:
        """Closes the channel. Every call in flight ends with an error."""
        with self._lock:
            opened, self._opened, self._closed = self._opened, None, True
        if opened is not None and self._process == os.getpid():
            opened.close()

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        return _Method(self, "unary_unary", arguments, named)

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        return _Method(self, "unary_stream", arguments, named)

    def stream_unary(self, *arguments: Any, **named: Any) -> Any:
        return _Method(self, "stream_unary", arguments, named)

    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        return _Method(self, "stream_stream", arguments, named)

    def subscribe(self, callback: Any, try_to_connect: bool | None = None) -> None:
        self.opened().subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Any) -> None:
        self.opened().unsubscribe(callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Method:
    """A method of a channel that may not be open yet."""

    def __init__(self, channel: Channel, kind: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._channel = channel
        self._kind = kind
        self._arguments = arguments
        self._named = named
        self._callable: tuple[grpc.Channel, Any] | None = None

    def __call__(self, request: Any, **named: Any) -> Any:
        return self._opened()(request, **named)

    def with_call(self, request: Any, **named: Any) -> Any:
        return self._opened().with_call(request, **named)

    def future(self, request: Any, **named: Any) -> Any:
        return self._opened().future(request, **named)

    def _opened(self) -> Any:
        channel = self._channel.opened()
        if self._callable is None or self._callable[0] is not channel:
            self._callable = channel, getattr(channel, self._kind)(*self._arguments, **self._named)
        return self._callable[1]


def open_channel(
    target: str,
    *,
    credentials: grpc.ChannelCredentials | None,
    options: Sequence[ChannelOption],
    interceptors: Sequence[Interceptor],
) -> Channel:
    """Returns a channel that is opened by its first call."""
    return Channel(target, credentials, options, interceptors)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translates gRPC's errors inside the block: to SessionError, TransportError or ClientClosed."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(cast(Failure, error)) from None
    except ValueError as error:
        if "closed channel" not in str(error):
            raise
        raise ClientClosed(CLOSED) from None


def responses_of(call: StreamCall, *, silence: float) -> Generator[Any, None, None]:
    """Yields the responses of a stream, and cancels it at the end.

    Raises TransportError after `silence` seconds without a response, and what `translated_errors` does.
    """
    watch = _Watch(call, silence)
    try:
        while True:
            with watch, translated_errors():
                response = next(call, None)
            if response is None:
                return
            yield response
    except Exception:
        if watch.fired:
            raise silent(silence) from None
        raise
    finally:
        watch.end()
        call.cancel()


class _Watch:
    """Cancels a call that sends nothing for too long while its reader waits: gRPC's own wait has no limit."""

    def __init__(self, call: StreamCall, silence: float) -> None:
        self.fired = False
        self._call = call
        self._silence = silence
        self._since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="turnkeeper-silence", daemon=True)
        self._thread.start()

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._since = None

    def end(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        left = self._silence
        while not self._ended.wait(left):
            since = self._since
            left = self._silence if since is None else since + self._silence - time.monotonic()
            if left <= 0:
                self.fired = True
                self._call.cancel()
                return


def token_of(given: str | Awaitable[str]) -> str:
    """Returns what a source of tokens gave. Raises TypeError for a coroutine."""
    if isinstance(given, str):
        return given
    if hasattr(given, "close"):
        given.close()
    raise TypeError("the client without asyncio takes a token from a plain function, not from a coroutine function")


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


def with_metadata(details: Any, added: Sequence[tuple[str, str]]) -> Any:
    """Returns the details of a call with more metadata."""
    return _CallDetails(
        details.method,
        details.timeout,
        (*(details.metadata or ()), *added),
        details.credentials,
        details.wait_for_ready,
        details.compression,
    )
