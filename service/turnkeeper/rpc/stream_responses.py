"""The responses of a stream, each with its cursor, and the error that ends it, with the cursor to resume from."""

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.batch import Batch
from turnkeeper.engine.streaming.stream_end import StreamEnded
from turnkeeper.engine.streaming.watcher import Watcher
from turnkeeper.errors import CursorExpired, SessionError, SlowConsumer
from turnkeeper.rpc import cursor, wire
from turnkeeper.rpc.status import carries_cursor


def response(batch: Batch, key: SessionKey) -> bytes:
    """Returns the batch as a message's bytes. They are encoded once for all readers of the batch."""
    if not batch.wire:
        position = batch.position
        at = cursor.encoded(position, key)
        batch.wire = wire.response(batch.events, cursor=at, through=position.sequence, caught_up=batch.caught_up)
    return batch.wire


def with_cursor(end: StreamEnded | SessionError, key: SessionKey, *, watcher: Watcher | None = None) -> SessionError:
    """Returns the error that ends a stream, with the cursor to resume from if the stream may go on.

    A planned end has its own position. An error of a trimmed log carries the log's oldest cursor, and its newest.
    `watcher` is the stream's; None for a unary call.
    """
    if isinstance(end, StreamEnded):
        end.error.cursor = _cursor(end.position, key)
        return end.error
    if not isinstance(end, CursorExpired):
        resume_at = _resume_at(end, watcher) if watcher is not None else None
        if resume_at is not None and carries_cursor(end.code):
            end.cursor = _cursor(resume_at, key)
        return end
    end.cursor = _cursor(StreamPosition(sequence=int(end.metadata["oldest_sequence"]) - 1), key)
    head = _cursor(StreamPosition(sequence=int(end.metadata["head_sequence"])), key)
    end.metadata |= {"oldest_cursor": end.cursor, "head_cursor": head}
    return end


def _resume_at(end: SessionError, watcher: Watcher) -> StreamPosition | None:
    """Returns the position after what the stream delivered; None before the stream began.

    A slow reader gets the response whose write was late: gRPC holds it, and sends it before the status.
    """
    return watcher.position if isinstance(end, SlowConsumer) else watcher.resume_at


def _cursor(position: StreamPosition, key: SessionKey) -> str:
    return cursor.encode(position, key=key)
