"""Wire bytes of deltas and stream responses, made by hand because a message object for each costs too much.

The unit tests compare them with what protobuf makes.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from google.protobuf.descriptor import Descriptor

from turnkeeper.pb.v1 import approval_pb2, event_pb2, session_pb2

VARINT, BYTES = 0, 2
"""Protobuf's wire types: a number of variable length, and bytes with their length before them."""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


class _Varints(dict[int, bytes]):
    """Has the numbers that nearly every delta has: lengths, offsets, sequence numbers. Makes any other."""

    def __missing__(self, number: int) -> bytes:
        return _varint(number)


VARINTS: Final[Mapping[int, bytes]] = _Varints({number: _varint(number) for number in range(4096)})
"""Protobuf's variable-length form of each number ≥ 0. A table, as a delta has six of them."""


def _tag(message: Descriptor, field: str, wire_type: int) -> bytes:
    """Returns the bytes that stand before a field's value: its number and its wire type."""
    return VARINTS[message.fields_by_name[field].number << 3 | wire_type]


_EVENT = event_pb2.Event.DESCRIPTOR
_DELTA = event_pb2.ContentDelta.DESCRIPTOR
_RESPONSE = session_pb2.WatchEventsResponse.DESCRIPTOR
_INBOX = approval_pb2.WatchApprovalsResponse.DESCRIPTOR

SEQUENCE = _tag(_EVENT, "sequence", VARINT)
"""The tag of `Event.sequence`. It is appended to a stored event: protobuf merges concatenated messages."""
CONTENT_DELTA = _tag(_EVENT, "content_delta", BYTES)
OFFSET = _tag(_DELTA, "offset", VARINT)
# KIND, RESTARTS and CAUGHT_UP have their value with them: it is always the same. The others are tags alone.
KIND = _tag(_DELTA, "kind", VARINT) + VARINTS[event_pb2.DELTA_KIND_TEXT]
TEXT = _tag(_DELTA, "text", BYTES)
RESTARTS = _tag(_DELTA, "restarts", VARINT) + VARINTS[1]
EVENTS = _tag(_RESPONSE, "events", BYTES)
CURSOR = _tag(_RESPONSE, "cursor", BYTES)
THROUGH = _tag(_RESPONSE, "through_sequence", VARINT)
CAUGHT_UP = _tag(_RESPONSE, "caught_up", VARINT) + VARINTS[1]
APPROVALS = _tag(_INBOX, "approvals", BYTES)
GONE = _tag(_INBOX, "gone", BYTES)
INBOX_CAUGHT_UP = _tag(_INBOX, "caught_up", VARINT) + VARINTS[1]
INBOX_RESET = _tag(_INBOX, "reset", VARINT) + VARINTS[1]


def delta(  # noqa: PLR0913 - the fields of the message
    session_id: str, turn_id: str, message_id: str, attempt: int, offset: int, text: bytes, *, restarts: bool
) -> bytes:
    """Returns an Event with a `content_delta`. The parameters are the fields of the two; the kind is always TEXT."""
    event, delta_start = _frame(session_id, turn_id, message_id, attempt)
    content_delta = b"".join(
        (delta_start, OFFSET, VARINTS[offset], KIND, TEXT, VARINTS[len(text)], text, RESTARTS if restarts else b"")
    )
    return b"".join((event, VARINTS[len(content_delta)], content_delta))


@lru_cache(maxsize=256)
def _frame(session_id: str, turn_id: str, message_id: str, attempt: int) -> tuple[bytes, bytes]:
    """Returns the bytes that all deltas of a message share: the event's up to its delta, and the delta's first ones."""
    event = event_pb2.Event(session_id=session_id, turn_id=turn_id, attempt=attempt)
    content_delta = event_pb2.ContentDelta(message_id=message_id, attempt=attempt)
    return event.SerializeToString() + CONTENT_DELTA, content_delta.SerializeToString()


def response(events: list[bytes], *, cursor: bytes, through: int, caught_up: bool) -> bytes:
    """Returns a WatchEventsResponse, or a StreamMessageResponse without its turn: the field numbers are the same."""
    parts: list[bytes] = []
    for event in events:
        parts += (EVENTS, VARINTS[len(event)], event)
    parts += (CURSOR, VARINTS[len(cursor)], cursor, THROUGH, VARINTS[through])
    if caught_up:
        parts.append(CAUGHT_UP)
    return b"".join(parts)


def inbox_response(approvals: list[bytes], gone: list[bytes], *, caught_up: bool, reset: bool) -> bytes:
    """Returns a WatchApprovalsResponse of these serialized approvals."""
    parts: list[bytes] = []
    for tag, of_tag in ((APPROVALS, approvals), (GONE, gone)):
        for approval in of_tag:
            parts += (tag, VARINTS[len(approval)], approval)
    parts += (INBOX_CAUGHT_UP if caught_up else b"", INBOX_RESET if reset else b"")
    return b"".join(parts)
