"""Converts domain values to messages and back, by the names of their fields.

A dataclass and its message have the same field names; enums have the same names without the proto's prefix. So one
pair of functions converts all of them, and the round-trip test finds a field that one side lacks.
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

from turnkeeper.domain.approval_events import ApprovalExpiring, ApprovalExtended, ApprovalVoted
from turnkeeper.domain.event import (
    KINDS,
    NAMES,
    AttemptFailed,
    Event,
    MessageCompleted,
    NewEvent,
    Payload,
    TurnFailed,
    UnknownPayload,
)
from turnkeeper.domain.message import text_of
from turnkeeper.domain.newer_version import unspecified
from turnkeeper.domain.remembered import RememberedDecision
from turnkeeper.domain.tool_events import ToolReconciled
from turnkeeper.pb.v1 import event_pb2
from turnkeeper.rpc import wire
from turnkeeper.rpc.status import advice
from turnkeeper.store.changeset import StoredEvent

IGNORABLE = (ApprovalExpiring, ApprovalExtended, ApprovalVoted, RememberedDecision, ToolReconciled)
"""The payloads that a client which does not know them skips: what they lead to is an event of its own."""
M = TypeVar("M", bound=Message)
T = TypeVar("T")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Put = Callable[[Any, Any], None]
Get = Callable[[Any], Any]


def fill(message: M, value: object, *, rename: Mapping[str, str] = {}) -> M:
    """Sets every field of `message` that `value` has, and returns it. `rename`: from a value's to a message's name."""
    target, source = cast(tuple[Any, Any], (type(message), type(value)))
    for name, put in _writer(target, source, tuple(rename.items())):
        part = getattr(value, name)
        if part is not None:
            put(message, part)
    return message


def read(kind: type[T], message: Message) -> T:
    """Returns the dataclass of this message. Fields that the dataclass lacks are left out.

    A value that an enum lacks is UNSPECIFIED: a newer version stored it.
    """
    target, source = cast(tuple[Any, Any], (kind, type(message)))
    return kind(**{name: get(message) for name, get in _reader(target, source)})


def enum_value(field: FieldDescriptor, value: enum.Enum) -> int:
    """Returns the number of a StrEnum's member in the proto's enum."""
    return int(field.enum_type.values_by_name[f"{_prefix(field)}{value.value}"].number)


@cache
def _writer(message: Any, kind: Any, renamed: tuple[tuple[str, str], ...]) -> tuple[tuple[str, Put], ...]:
    """Returns how to set each field of such a message from such a value. Computed once for each pair of types."""
    known, rename = message.DESCRIPTOR.fields_by_name, dict(renamed)
    targets = [(field.name, known.get(rename.get(field.name, field.name))) for field in fields(kind)]
    annotations = _annotations(kind)
    return tuple((name, _put(field, _present(annotations[name]))) for name, field in targets if field is not None)


def _put(field: FieldDescriptor, annotation: Any) -> Put:
    name, origin = field.name, get_origin(annotation)
    if origin is tuple:
        return _put_all(name, get_args(annotation)[0])
    if origin is frozenset:
        return lambda message, value: getattr(message, name).extend(sorted(value))
    if origin is not None:
        return lambda message, value: getattr(message, name).update(value)
    if is_dataclass(annotation):
        return lambda message, value: _put_into(getattr(message, name), value)
    if annotation is datetime:
        return lambda message, value: set_time(getattr(message, name), value)
    if annotation is timedelta:
        return lambda message, value: getattr(message, name).FromTimedelta(value)
    if issubclass(annotation, enum.Enum) and not issubclass(annotation, enum.IntEnum):
        numbers = {member: enum_value(field, member) for member in annotation} | {unspecified(annotation): 0}
        return lambda message, value: setattr(message, name, numbers[value])
    return lambda message, value: setattr(message, name, value)


def _put_all(name: str, annotation: Any) -> Put:
    if not is_dataclass(annotation):
        return lambda message, value: getattr(message, name).extend(value)

    def put(message: Any, value: Any) -> None:
        target = getattr(message, name)
        for item in value:
            fill(target.add(), item)

    return put


def _put_into(message: Message, value: object) -> None:
    message.SetInParent()
    fill(message, value)


@cache
def _reader(kind: Any, message: Any) -> tuple[tuple[str, Get], ...]:
    known = message.DESCRIPTOR.fields_by_name
    return tuple(
        (name, _get(known[name], annotation)) for name, annotation in _annotations(kind).items() if name in known
    )


def _get(field: FieldDescriptor, annotation: Any) -> Get:
    name, some = field.name, _some(field, _present(annotation))
    if annotation is not _present(annotation) and field.has_presence:
        return lambda message: some(getattr(message, name)) if message.HasField(name) else None
    return lambda message: some(getattr(message, name))


def _some(field: FieldDescriptor, annotation: Any) -> Get:
    origin = get_origin(annotation)
    if origin is tuple:
        item = get_args(annotation)[0]
        return (
            (lambda value: tuple(read(cast(type[Any], item), part) for part in value)) if is_dataclass(item) else tuple
        )
    if origin is frozenset:
        return frozenset
    if origin is not None:
        return dict
    if is_dataclass(annotation):
        return lambda value: read(cast(type[Any], annotation), value)
    if annotation is datetime:
        return lambda value: value.ToDatetime(tzinfo=UTC)
    if annotation is timedelta:
        return lambda value: value.ToTimedelta()
    if issubclass(annotation, enum.Enum):
        return _member(field, annotation)
    return lambda value: value


def _member(field: FieldDescriptor, annotation: type[enum.Enum]) -> Get:
    """Returns a function from a number to the enum's member; to UNSPECIFIED if this version has no such member."""
    numbered = issubclass(annotation, enum.IntEnum)
    members = {member.value if numbered else enum_value(field, member): member for member in annotation}
    other = unspecified(annotation)
    return lambda value: members.get(value, other)


def _present(annotation: Any) -> Any:
    """Returns X for the type `X | None`, and any other type as it is."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    return next(part for part in get_args(annotation) if part is not type(None))


@cache
def _annotations(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _enum_prefix(name: str) -> str:
    return "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in name).lstrip("_") + "_"


def _prefix(field: FieldDescriptor) -> str:
    return _enum_prefix(field.enum_type.name)


def fill_struct(message: Struct, text: str) -> None:
    """Sets a Struct from its JSON text."""
    json_format.Parse(text, message)


def timestamp(value: datetime | None) -> Timestamp | None:
    """Returns the time as a message, or None for None."""
    if value is None:
        return None
    message = Timestamp()
    set_time(message, value)
    return message


def set_time(message: Timestamp, value: datetime) -> None:
    """Sets the message as `FromDatetime` does for a time with a zone, at a fraction of its cost."""
    since = value - EPOCH
    message.seconds, message.nanos = since.days * 86_400 + since.seconds, since.microseconds * 1000


def seconds(value: Duration) -> float:
    """Returns the duration in seconds."""
    return value.seconds + value.nanos / 1e9


def optional_seconds(message: Message, field: str) -> float | None:
    """Returns the duration in this field in seconds; None if it is unset."""
    return seconds(getattr(message, field)) if message.HasField(field) else None


class WireCodec:
    """Events as bytes: the stored bytes are the bytes on the wire."""

    def encode(self, session_id: str, event: NewEvent) -> bytes:
        """Returns the wire form without the sequence number."""
        message = event_pb2.Event(session_id=session_id, turn_id=event.turn_id, attempt=event.attempt)
        set_time(message.create_time, event.at)
        if isinstance(event.payload, UnknownPayload):
            message.ignorable = True
            return message.SerializeToString() + event.payload.raw
        message.ignorable = isinstance(event.payload, IGNORABLE)
        payload = getattr(message, NAMES[type(event.payload)])
        payload.SetInParent()
        fill(payload, event.payload)
        if isinstance(event.payload, AttemptFailed | TurnFailed):
            payload.error.session_id, payload.error.turn_id = session_id, event.turn_id
            payload.error.retry = advice(event.payload.error.code)
        return message.SerializeToString()

    def number(self, payload: bytes, sequence: int) -> bytes:
        """Returns the wire form with the sequence number, which is appended."""
        return payload + wire.SEQUENCE + wire.VARINTS[sequence]

    def decode(self, stored: StoredEvent) -> Event:
        """Returns a stored event as a value. Raises ValueError for a kind that this version does not know."""
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

    def delta(  # noqa: PLR0913 - the fields of the message
        self, session_id: str, *, turn_id: str, message_id: str, attempt: int, offset: int, text: bytes, restarts: bool
    ) -> bytes:
        """Returns the wire form of a `content_delta` event."""
        return wire.delta(session_id, turn_id, message_id, attempt, offset, text, restarts=restarts)

    def progress(self, session_id: str, *, turn_id: str, attempt: int, tool_call_id: str, message: str) -> bytes:
        """Returns the wire form of a `tool_progress` event."""
        progress = event_pb2.ToolProgress(tool_call_id=tool_call_id, message=message)
        event = event_pb2.Event(session_id=session_id, turn_id=turn_id, attempt=attempt, tool_progress=progress)
        return event.SerializeToString()

    def message_text(self, payload: bytes) -> tuple[str, int, bytes]:
        """Returns the message id, the attempt and the UTF-8 text of a stored `message_completed`."""
        message = event_pb2.Event.FromString(payload)
        completed = read(MessageCompleted, message.message_completed)
        return completed.message_id, message.attempt, text_of(completed.content).encode()
