"""Writes responses to a stream without its task: a task would be woken twice for each.

The write is begun as soon as there is something, and looked at when the next thing comes.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final, Self

import grpc

from turnkeeper.admission.memory import SMALL, MemoryPart
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.batch import Batch
from turnkeeper.errors import SlowConsumer
from turnkeeper.rpc.context import Context
from turnkeeper.rpc.identity import LaterChecks
from turnkeeper.rpc.stream_responses import response

TRIED: Final = "1.83.2"
"""The version of gRPC whose write is known to wait for one future, and for nothing else."""
IS_TRIED: Final = grpc.__version__ == TRIED


class CallStream:
    """The stream of one call; implements `DirectStream`."""

    __slots__ = ("_check", "_context", "_error", "_is_late", "_key", "_sent", "_size", "_write", "_writes", "wake")

    def __init__(self, writes: "DirectWrites", context: Context, check: LaterChecks) -> None:
        """`check` is the call's: once it is due, the stream's task is needed."""
        self._writes = writes
        self._context: Context | None = context
        """None once the call has ended: the call's own variables refer to this object, and it must not to the call."""
        self._check: LaterChecks | None = check
        self._key: SessionKey | None = None
        self._write: Coroutine[Any, Any, None] | None = None
        self._sent: Any = None
        """Done once gRPC has sent what `_write` writes."""
        self._size = 0
        self._error: BaseException | None = None
        self._is_late = False
        self.wake: Callable[[], None] = _nothing

    def of(self, key: SessionKey) -> Self:
        """Returns the stream itself, which has the responses about this session."""
        self._key = key
        return self

    @property
    def is_writing(self) -> bool:
        """Returns True while gRPC has not sent the last batch."""
        return self._write is not None and not self._sent.done()

    def is_ready(self, now: float) -> bool:
        if self._write is not None:
            if not self._sent.done():
                return False
            self._end()
        return self._check is not None and now < self._check.due and self._error is None

    def write(self, batch: Batch, now: float) -> bool:
        if self._key is None or self._context is None:
            return False
        try:
            data = batch.wire or response(batch, self._key)
            write = self._context.write(data)
            self._sent = write.send(None)
        except StopIteration:
            return True  # it is sent already
        except BaseException as error:  # noqa: BLE001 - the stream's task raises it
            self._error = error
            return False
        self._write = write
        if len(data) > SMALL:
            self._hold(len(data))
        self._writes.begin(self, now)
        return True

    async def written(self) -> None:
        if self._write is not None:
            if not self._sent.done():
                await asyncio.wait([self._sent])
            if self._is_late:
                raise SlowConsumer
            self._end()
        if self._error is not None:
            raise self._error

    def expire(self) -> None:
        """Ends a write that takes too long. gRPC holds what it has, and sends it before the status."""
        self._is_late = True
        self._sent.cancel()
        self.wake()

    def close(self) -> None:
        """Forgets what is on its way: the call has ended."""
        self.wake, self._context, self._check = _nothing, None, None
        write, self._write = self._write, None
        if write is not None:
            self._sent.cancel()  # its error, if it has one, is logged nowhere then
            write.close()
        self._hold(0)
        self._writes.forget(self)

    def _end(self) -> None:
        """Lets gRPC's write end: it is sent, or has failed."""
        write, self._write = self._write, None
        if self._size:
            self._hold(0)
        try:
            write.send(None)  # type: ignore[union-attr]  # the callers have looked
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - the stream's task raises it
            self._error = error

    def _hold(self, size: int) -> None:
        """Counts the bytes that are on their way, or that were."""
        self._writes.held.add(size - self._size)
        self._size = size


class DirectWrites:
    """The direct writes of all streams, and how long each may take: one timer for all of them."""

    def __init__(self, timeout: float, held: MemoryPart, *, on_late: Callable[[], None]) -> None:
        """`timeout` in seconds. `held` counts what is on its way. `on_late` is called for each write that expires."""
        self.held = held
        self._timeout = timeout
        self._on_late = on_late
        self._begun: dict[CallStream, float] = {}
        """When the last write of each stream began, the oldest first; some have ended by now."""
        self._timer: asyncio.TimerHandle | None = None

    def open(self, context: Context, check: LaterChecks) -> CallStream:
        """Returns the stream of this call, which the caller closes. Its task gets it by `direct_stream` from now on."""
        stream = CallStream(self, context, check)
        _STREAM.set(stream if IS_TRIED else None)
        return stream

    def begin(self, stream: CallStream, now: float) -> None:
        """Notes that a write of this stream begins now, in monotonic seconds."""
        self._begun.pop(stream, None)
        self._begun[stream] = now
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout, self._expire_late)

    def forget(self, stream: CallStream) -> None:
        """Notes that the stream's call has ended."""
        self._begun.pop(stream, None)

    def _expire_late(self) -> None:
        self._timer, loop = None, asyncio.get_running_loop()
        now = loop.time()
        for stream, began in list(self._begun.items()):
            left = began + self._timeout - now
            if left > 0:
                self._timer = loop.call_later(left, self._expire_late)
                return
            del self._begun[stream]
            if stream.is_writing:
                self._on_late()
                stream.expire()


_STREAM: ContextVar[CallStream | None] = ContextVar("what is written to without the call's task", default=None)


def direct_stream(key: SessionKey) -> CallStream | None:
    """Returns what responses about this session can be written to, without the task of the current call.

    Returns None with another version of gRPC than TRIED: the task writes them.
    """
    stream = _STREAM.get()
    return None if stream is None else stream.of(key)


def _nothing() -> None:
    """Wakes nothing."""
