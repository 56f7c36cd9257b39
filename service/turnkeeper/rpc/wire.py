"""Bytes of the wire, made by hand where a message object for each of them costs too much: deltas and responses.

The tests hold them against what protobuf makes.
"""

from functools import lru_cache

from google.protobuf.descriptor import Descriptor

from turnkeeper.pb.v1 import event_pb2, session_pb2

VARINT, BYTES = 0, 2
"""Protobuf's wire types."""


def varint(number: int) -> bytes:
    """Protobuf's variable-length form of a number ≥ 0."""
    if number < 128:
        return _SMALL[number]
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL = [bytes((number,)) for number in range(128)]


def _tag(message: Descriptor, field: str, kind: int) -> bytes:
    return varint(message.fields_by_name[field].number << 3 | kind)


_EVENT = event_pb2.Event.DESCRIPTOR
_DELTA = event_pb2.ContentDelta.DESCRIPTOR
_RESPONSE = session_pb2.WatchEventsResponse.DESCRIPTOR

SEQUENCE = _tag(_EVENT, "sequence", VARINT)
"""Of `Event.sequence`: appended, because concatenated messages merge."""
CONTENT_DELTA = _tag(_EVENT, "content_delta", BYTES)
OFFSET = _tag(_DELTA, "offset", VARINT)
KIND = _tag(_DELTA, "kind", VARINT) + varint(event_pb2.DELTA_KIND_TEXT)
TEXT = _tag(_DELTA, "text", BYTES)
RESTARTS = _tag(_DELTA, "restarts", VARINT) + varint(1)
EVENTS = _tag(_RESPONSE, "events", BYTES)
CURSOR = _tag(_RESPONSE, "cursor", BYTES)
THROUGH = _tag(_RESPONSE, "through_sequence", VARINT)
CAUGHT_UP = _tag(_RESPONSE, "caught_up", VARINT) + varint(1)


def delta(  # noqa: PLR0913 - the fields of the message
    session_id: str, turn_id: str, message_id: str, attempt: int, offset: int, text: bytes, *, restarts: bool
) -> bytes:
    """A `content_delta` event."""
    event, head = _frame(session_id, turn_id, message_id, attempt)
    said = b"".join((head, OFFSET, varint(offset), KIND, TEXT, varint(len(text)), text, RESTARTS if restarts else b""))
    return b"".join((event, varint(len(said)), said))


@lru_cache(maxsize=256)
def _frame(session_id: str, turn_id: str, message_id: str, attempt: int) -> tuple[bytes, bytes]:
    """What all deltas of a message have in common: of the event, and of the delta in it."""
    event = event_pb2.Event(session_id=session_id, turn_id=turn_id, attempt=attempt)
    said = event_pb2.ContentDelta(message_id=message_id, attempt=attempt)
    return event.SerializeToString() + CONTENT_DELTA, said.SerializeToString()


def response(events: list[bytes], *, cursor: str, through: int, caught_up: bool) -> bytes:
    """A WatchEventsResponse, and a StreamMessageResponse without its turn: their fields have the same numbers."""
    pieces: list[bytes] = []
    for event in events:
        pieces += (EVENTS, varint(len(event)), event)
    place = cursor.encode()
    pieces += (CURSOR, varint(len(place)), place, THROUGH, varint(through))
    if caught_up:
        pieces.append(CAUGHT_UP)
    return b"".join(pieces)
