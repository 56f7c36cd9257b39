"""Values ↔ messages, once, by the fields' names.

A dataclass and its message have the same field names; enums have the same names without the proto's prefix. So one
pair of functions serves all of them, and a field that one side lacks is found by the round-trip test.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from turnkeeper.domain.event import (
    KINDS,
    NAMES,
    AttemptFailed,
    Event,
    ForeignPayload,
    MessageCompleted,
    NewEvent,
    Payload,
    TurnFailed,
)
from turnkeeper.domain.message import text_of
from turnkeeper.pb.v1 import event_pb2
from turnkeeper.rpc.status import advice
from turnkeeper.store.step import StoredEvent

M = TypeVar("M", bound=Message)
T = TypeVar("T")

SEQUENCE_TAG = bytes([event_pb2.Event.DESCRIPTOR.fields_by_name["sequence"].number << 3])
"""The wire tag of `Event.sequence`: appended, because concatenated messages merge."""

FOREIGN_TAG = b"\x9a\x06"
"""The wire tag of a text in `Event`'s field 99, which no version ever names."""


def fill(message: M, value: object, *, rename: Mapping[str, str] = {}) -> M:
    """Set every field of `message` that `value` has, by name; `rename` maps a value's name to the message's."""
    known = message.DESCRIPTOR.fields_by_name
    for field in fields(value):  # type: ignore[arg-type]
        name = rename.get(field.name, field.name)
        if name in known:
            _set(message, known[name], getattr(value, field.name))
    return message


def read(kind: type[T], message: Message) -> T:
    """The dataclass of this message. Fields the dataclass lacks are passed over."""
    known = message.DESCRIPTOR.fields_by_name
    values = {name: _get(message, known[name], hint) for name, hint in _hints(cast(Any, kind)).items() if name in known}
    return kind(**values)


def enum_value(field: FieldDescriptor, value: enum.Enum) -> int:
    """The number of a StrEnum's member in the proto's enum."""
    return int(field.enum_type.values_by_name[f"{_prefix(field)}{value.value}"].number)


def _set(message: Message, field: FieldDescriptor, value: object) -> None:  # noqa: C901 - one case a kind of field
    name = field.name
    match value:
        case None:
            return
        case enum.IntEnum():
            setattr(message, name, int(value))
        case enum.Enum():
            setattr(message, name, enum_value(field, value))
        case datetime():
            getattr(message, name).FromDatetime(value)
        case timedelta():
            getattr(message, name).FromTimedelta(value)
        case tuple():
            target = getattr(message, name)
            for item in value:
                if is_dataclass(item):
                    fill(target.add(), item)
                else:
                    target.append(item)
        case Mapping():
            getattr(message, name).update(value)
        case _ if is_dataclass(value):
            submessage = getattr(message, name)
            submessage.SetInParent()
            fill(submessage, value)
        case _:
            setattr(message, name, value)


def _get(message: Message, field: FieldDescriptor, hint: Any) -> Any:
    optional = get_origin(hint) in (Union, UnionType)
    if optional:
        hint = next(part for part in get_args(hint) if part is not type(None))
        if field.has_presence and not message.HasField(field.name):
            return None
    value = getattr(message, field.name)
    origin = get_origin(hint)
    if origin is tuple:
        (item, _) = get_args(hint)
        return tuple(read(cast(type[Any], item), part) if is_dataclass(item) else part for part in value)
    if origin is not None:
        return dict(value)
    return _scalar(hint, field)(value)


def _scalar(hint: Any, field: FieldDescriptor) -> Callable[[Any], Any]:
    if is_dataclass(hint):
        return lambda value: read(cast(type[Any], hint), value)
    if hint is datetime:
        return lambda value: value.ToDatetime(tzinfo=UTC)
    if hint is timedelta:
        return lambda value: value.ToTimedelta()
    if issubclass(hint, enum.IntEnum):
        return cast(Callable[[Any], Any], hint)
    if issubclass(hint, enum.Enum):
        names = field.enum_type.values_by_number
        return lambda value: hint(names[value].name.removeprefix(_prefix(field)))
    return lambda value: value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _enum_prefix(name: str) -> str:
    return "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in name).lstrip("_") + "_"


def _prefix(field: FieldDescriptor) -> str:
    return _enum_prefix(field.enum_type.name)


def fill_struct(message: Struct, text: str) -> None:
    """A Struct from its JSON text."""
    json_format.Parse(text, message)


def timestamp(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    made = Timestamp()
    made.FromDatetime(value)
    return made


def seconds(value: Duration) -> float:
    return value.seconds + value.nanos / 1e9


class WireCodec:
    """Events as bytes: what is stored is what is sent."""

    def encode(self, session_id: str, event: NewEvent) -> bytes:
        """The wire form without its number."""
        made = event_pb2.Event(session_id=session_id, turn_id=event.turn_id, attempt=event.attempt)
        made.create_time.FromDatetime(event.at)
        if isinstance(event.payload, ForeignPayload):
            made.ignorable, text = True, event.payload.text.encode()
            return made.SerializeToString() + FOREIGN_TAG + varint(len(text)) + text
        payload = getattr(made, NAMES[type(event.payload)])
        payload.SetInParent()
        fill(payload, event.payload)
        if isinstance(event.payload, AttemptFailed | TurnFailed):
            payload.error.session_id, payload.error.turn_id = session_id, event.turn_id
            payload.error.retry = advice(event.payload.error.code)
        return made.SerializeToString()

    def number(self, payload: bytes, sequence: int) -> bytes:
        """The wire form with its number, made by appending."""
        return payload + SEQUENCE_TAG + varint(sequence)

    def decode(self, stored: StoredEvent) -> Event:
        """A stored event as a value. Raises ValueError for a kind that this version does not know."""
        message = event_pb2.Event.FromString(stored.payload)
        if stored.kind not in KINDS:
            raise ValueError(f"event {stored.sequence} is a {stored.kind}, which this version does not know")
        payload: Payload = read(KINDS[stored.kind], getattr(message, stored.kind))
        return Event(
            sequence=message.sequence,
            turn_id=message.turn_id,
            attempt=message.attempt,
            create_time=message.create_time.ToDatetime(tzinfo=UTC),
            payload=payload,
        )

    def delta(self, session_id: str, *, turn_id: str, message_id: str, attempt: int, offset: int, text: str) -> bytes:
        """The wire form of a `content_delta` event."""
        return event_pb2.Event(
            session_id=session_id,
            turn_id=turn_id,
            attempt=attempt,
            content_delta=event_pb2.ContentDelta(
                message_id=message_id,
                attempt=attempt,
                offset=offset,
                kind=event_pb2.DELTA_KIND_TEXT,
                text=text,
            ),
        ).SerializeToString()

    def message_text(self, payload: bytes) -> tuple[str, int, bytes]:
        """Of a stored `message_completed`: message id, attempt, text in UTF-8."""
        message = event_pb2.Event.FromString(payload)
        said = read(MessageCompleted, message.message_completed)
        return said.message_id, message.attempt, text_of(said.content).encode()


def varint(number: int) -> bytes:
    """Protobuf's variable-length form of a number ≥ 0."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def batch(events: list[bytes], rest: Message) -> bytes:
    """A response with `repeated Event events = 1`, of events that are bytes already, and the other fields of `rest`."""
    pieces = [b"".join((b"\n", varint(len(event)), event)) for event in events]
    pieces.append(rest.SerializeToString())
    return b"".join(pieces)
