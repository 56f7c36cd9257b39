"""Fields of requests at their own limits and beyond, as bytes on the wire, by the descriptors and their rules."""

import re
from collections.abc import Callable, Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct

from turnkeeper.pb.v1 import rules_pb2

REQUEST_BYTES = (4 << 20) - 4096
"""Nearly what gRPC takes."""
KIB = 1024
Field = tuple[str, bytes]
"""What the field holds, and its bytes, tag included."""

JSON_TEXTS = {
    "many objects": '{"a":[' + "{}," * 21_000 + "1]}",
    "many numbers": '{"a":[' + "1," * 32_000 + "1]}",
    "one text": '{"a":"' + "é" * 32_000 + '"}',
    "a costly schema": '{"type":"object","allOf":[' + "{}," * 21_000 + "{}]}",
    "a schema of references": '{"type":"object","allOf":[' + '{"$ref":"#/$defs/a"},' * 2900 + '{}],"$defs":{"a":{}}}',
    "64 levels": '{"a":' * 64 + "1" + "}" * 64,
    "brackets": "[" * 64_000,
}
"""JSON of up to 64 KiB that is costly to read, in one way or another."""


_PLACE = b"-----"


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def block(number: int, data: bytes) -> bytes:
    """Returns a field that holds bytes, a text or a message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def scalar(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def repeated(one: bytes) -> bytes:
    """Returns as many of it as a request may have."""
    return one * (REQUEST_BYTES // len(one))


def fields_of(message: Descriptor) -> Iterator[tuple[FieldDescriptor, list[Field]]]:
    """Yields each field of a message: first as it may be at most, then beyond that."""
    for field in message.fields:
        yield field, list(_values(field))


def _values(field: FieldDescriptor) -> Iterator[Field]:
    rules = field.GetOptions().Extensions[rules_pb2.rules]
    number, most = field.number, rules.max_items or 64
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        yield from _messages(field, most)
    elif field.type == FieldDescriptor.TYPE_ENUM and field.is_repeated:
        yield "values", scalar(number, 1) * most
        yield "as many as fit", block(number, b"\1" * REQUEST_BYTES)
        yield "unknown ones", block(number, b"\x63" * REQUEST_BYTES)
    elif field.type == FieldDescriptor.TYPE_STRING and field.is_repeated:
        yield "texts", block(number, b"message_completed") * most
        yield "empty texts", repeated(block(number, b""))
    elif field.type == FieldDescriptor.TYPE_STRING:
        yield from ((what, block(number, text.encode())) for what, text in _texts(field, rules))
    elif field.type == FieldDescriptor.TYPE_BYTES:
        yield "bytes", block(number, b"x" * (3 << 20))
    else:
        yield "the largest number", scalar(number, 1 if field.type == FieldDescriptor.TYPE_BOOL else 2**31 - 1)
        yield "a number of 64 bits", scalar(number, 2**63 - 1)


def _texts(field: FieldDescriptor, rules: rules_pb2.FieldRules) -> Iterator[tuple[str, str]]:
    bound = re.search(r"\{1,(\d+)\}", rules.pattern)
    if bound is not None:
        yield "the longest that matches", "x" * int(bound[1])
    elif field.name.endswith("_json"):
        yield from JSON_TEXTS.items()
    elif rules.max_length:
        yield "the longest", "é" * rules.max_length
    else:
        yield "256 KiB", "é" * (128 * KIB)
    yield "as long as fits", '"' * REQUEST_BYTES


def _messages(field: FieldDescriptor, most: int) -> Iterator[Field]:
    number, message = field.number, field.message_type
    if message.GetOptions().map_entry:
        yield "entries", _entries(number, most, b"k" * 120, b"v" * 128)
        yield "as many as fit", _entries(number, REQUEST_BYTES // 14, b"", b"")
    elif message.full_name.startswith("google.protobuf."):
        yield from ((what, block(number, data)) for what, data in _known_messages(message, most))
    elif field.is_repeated:
        for inner, values in fields_of(message):
            for what, data in values:
                if len(data) < 70 * KIB:
                    yield f"{inner.name}: {what}", block(number, data)
                    yield f"{inner.name}: {what}, many times", block(number, data[: 64 * KIB // most]) * most
        yield "as many as fit", repeated(block(number, b""))
    else:
        for inner, values in fields_of(message):
            yield from ((f"{inner.name}: {what}", block(number, data)) for what, data in values)


def _known_messages(message: Descriptor, most: int) -> Iterator[Field]:
    """Yields the contents of a message of protobuf's own."""
    if message is Struct.DESCRIPTOR:
        yield from _structs()
    elif message is FieldMask.DESCRIPTOR:
        yield "paths", block(1, b"title") * most
        yield "as many as fit", repeated(block(1, b""))
    else:
        yield "the latest", scalar(1, 2**62)


def _entries(number: int, count: int, key: bytes, value: bytes) -> bytes:
    return _numbered(number, count, lambda place: block(1, place + key) + block(2, value))


def _numbered(number: int, count: int, content: Callable[[bytes], bytes]) -> bytes:
    """Returns as many fields, which differ in a place of five digits that their content has once."""
    before, after = block(number, content(_PLACE)).split(_PLACE)
    return before + (after + before).join(b"%05x" % place for place in range(count)) + after


def _structs() -> Iterator[Field]:
    """Yields metadata of 16 KiB as JSON, or a little more, and as large as a request may have them."""
    nothing, zero = block(1, b"\x08\0"), block(1, b"\x11" + b"\0" * 8)
    for what, one in (("nothing", nothing), ("numbers", zero), ("empty", block(1, b""))):
        for count in (2700, 10_000, REQUEST_BYTES // len(one)):
            yield f"{count} {what}", block(1, block(1, b"a") + block(2, block(6, one * count)))
    for count in (1300, REQUEST_BYTES // 18):
        yield f"{count} names", _numbered(1, count, lambda place: block(1, place) + block(2, b"\x08\0"))
