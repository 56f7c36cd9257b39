"""An error on the wire: a gRPC status whose details fit in 4 KiB."""

from dataclasses import replace
from datetime import timedelta
from functools import cache

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from turnkeeper.codes import Code, Status
from turnkeeper.pb.v1 import error_pb2

DOMAIN = "turnkeeper"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Tells gRPC's own retries when to try again; a negative number forbids it."""
FIRST_PUSHBACK_MS = 100
"""When gRPC's own retries come back at first after OVERLOADED: they take the next replica, which may have room."""
MOST_BYTES = 4096
"""Bytes of all details. Clients drop the status of a call at random if it has more."""
MOST_TEXT = 500
"""Bytes of the message; gRPC writes each byte beyond ASCII as three."""
MOST_VALUE = 200
"""Bytes of one value of the metadata, or of one field's description."""
MOST_ENTRIES = 8
"""Entries of the metadata, or fields at fault."""
MOST_METADATA = 800
"""Bytes of all metadata. It is sent twice, and the two details that are always sent must fit beside it."""

RESOURCES = {
    Code.SESSION_NOT_FOUND: "session",
    Code.SESSION_ALREADY_EXISTS: "session",
    Code.TURN_NOT_FOUND: "turn",
    Code.APPROVAL_NOT_FOUND: "approval",
    Code.AGENT_NOT_FOUND: "agent",
    Code.AGENT_ALREADY_EXISTS: "agent",
    Code.CHECKPOINT_NOT_FOUND: "checkpoint",
}
"""The codes with a ResourceInfo, and the kind of resource that it names."""


@cache
def advice(code: Code, *, on_stream: bool = False) -> int:
    """Returns the RetryAdvice that the proto's option gives this code: `on_stream`, where the error ends a stream."""
    options = _options(code)
    return int((on_stream and options.retry_on_stream) or options.retry)


@cache
def stream_retry_after(code: Code) -> timedelta | None:
    """Returns the least time before a stream that this code ended is opened again. Returns None for at once."""
    options = _options(code)
    return options.stream_retry_after.ToTimedelta() if options.HasField("stream_retry_after") else None


def pushback(status: Status, *, is_first: bool = False) -> str:
    """Returns the value of PUSHBACK_KEY: of RESOURCE_EXHAUSTED only some codes are to be tried again. "" for none.

    `is_first`: gRPC's own retries have not tried the call before.
    """
    if status.family.name != "RESOURCE_EXHAUSTED":
        return ""
    waits = status.retry_after is not None and advice(status.code) == error_pb2.RETRY_ADVICE_SAME_CALL
    if status.retry_after is None or not waits or status.code is Code.QUOTA_EXCEEDED:
        return "-1"
    milliseconds = round(status.retry_after.total_seconds() * 1000)
    return str(min(milliseconds, FIRST_PUSHBACK_MS) if is_first and status.code is Code.OVERLOADED else milliseconds)


def may_resume(code: Code) -> bool:
    """Returns True if a stream that this code ended may go on."""
    return advice(code, on_stream=True) == error_pb2.RETRY_ADVICE_RESUME_STREAM


def carries_cursor(code: Code) -> bool:
    """Returns True if the error carries a cursor at the end of a stream: it may go on, or may with a new credential."""
    return may_resume(code) or code is Code.UNAUTHENTICATED


def _options(code: Code) -> error_pb2.ErrorCodeOptions:
    value = error_pb2.SessionErrorCode.DESCRIPTOR.values_by_number[code]
    options: error_pb2.ErrorCodeOptions = value.GetOptions().Extensions[error_pb2.error_code]
    return options


def detail_of(status: Status, *, on_stream: bool = False) -> error_pb2.SessionErrorDetail:
    """Returns the SessionErrorDetail of an error. `on_stream`: the error ends a stream."""
    detail = error_pb2.SessionErrorDetail(
        code=error_pb2.SessionErrorCode.ValueType(status.code),
        message=_cut(status.message, MOST_TEXT),
        session_id=status.session_id,
        turn_id=status.turn_id,
        cursor=status.cursor,
        retry=error_pb2.RetryAdvice.ValueType(advice(status.code, on_stream=on_stream)),
        metadata=_metadata(status),
    )
    if status.retry_after is not None:
        detail.retry_after.FromTimedelta(status.retry_after)
    return detail


def shown_message(status: Status) -> str:
    """Returns the message as gRPC's own header carries it."""
    return _cut(status.message, MOST_TEXT)


def details_bytes(status: Status, *, on_stream: bool = False) -> bytes:
    """Returns the serialized google.rpc.Status with its details, each type once.

    ErrorInfo and SessionErrorDetail are always there, others where they apply and fit. `on_stream`: the error ends a
    stream; its advice is then whether the stream may go on, and after how long.
    """
    if on_stream and status.retry_after is None:
        status = replace(status, retry_after=stream_retry_after(status.code))
    proto = status_pb2.Status(code=status.family, message=shown_message(status))
    info = error_details_pb2.ErrorInfo(reason=status.code.name, domain=DOMAIN, metadata=_metadata(status))
    for detail in (info, detail_of(status, on_stream=on_stream), *_standard(status)):
        packed = Any()
        packed.Pack(detail)
        if proto.ByteSize() + packed.ByteSize() + 8 <= MOST_BYTES:
            proto.details.append(packed)
    return bytes(proto.SerializeToString())


def _standard(status: Status) -> list[Message]:
    """Returns google.rpc's own details, where they apply."""
    details: list[Message] = []
    if status.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(status.retry_after)
        details.append(retry)
    if status.fields:
        details.append(_bad_request(status))
    if status.code in RESOURCES:
        kind = RESOURCES[status.code]
        resource_id = {"session": status.session_id, "turn": status.turn_id}.get(kind, "")
        name = resource_id or next(iter(status.metadata.values()), "")
        details.append(
            error_details_pb2.ResourceInfo(resource_type=f"turnkeeper.v1/{kind}", resource_name=_cut(name, MOST_VALUE))
        )
    if status.family.name == "FAILED_PRECONDITION":
        unmet = error_details_pb2.PreconditionFailure.Violation(
            type=status.code.name, subject=status.session_id, description=_cut(status.message, MOST_VALUE)
        )
        details.append(error_details_pb2.PreconditionFailure(violations=[unmet]))
    if status.code in (Code.QUOTA_EXCEEDED, Code.BUDGET_EXCEEDED, Code.RATE_LIMIT_EXCEEDED, Code.OVERLOADED):
        quota = error_details_pb2.QuotaFailure.Violation(
            subject=_subject(status), description=_cut(status.message, MOST_VALUE)
        )
        details.append(error_details_pb2.QuotaFailure(violations=[quota]))
    return details


def _subject(status: Status) -> str:
    """Returns what ran into a limit: a session, or the limit of a principal or a tenant."""
    if "scope" in status.metadata:
        return f"{status.metadata['scope']}:{status.metadata.get('limit', '')}"
    return status.session_id


def _bad_request(status: Status) -> Message:
    """Returns the fields at fault, as many as there is room for."""
    bad_request = error_details_pb2.BadRequest()
    for path, what in list(status.fields.items())[:MOST_ENTRIES]:
        violation = bad_request.field_violations.add(field=_cut(path, MOST_VALUE), description=_cut(what, MOST_VALUE))
        if bad_request.ByteSize() > MOST_METADATA and len(bad_request.field_violations) > 1:
            bad_request.field_violations.remove(violation)
            break
    return bad_request  # type: ignore[no-any-return]


def _metadata(status: Status) -> dict[str, str]:
    """Returns the entries that fit, the ids and the cursor first: they always fit."""
    entries = {name: getattr(status, name) for name in ("session_id", "turn_id", "cursor") if getattr(status, name)}
    for key, value in status.metadata.items():
        entries.setdefault(key, value)
    if status.fields:
        entries.setdefault("fields", ",".join(status.fields))
    room, metadata = MOST_METADATA, {}
    for key, value in list(entries.items())[:MOST_ENTRIES]:
        short_key, short_value = _cut(key, 64), _cut(value, MOST_VALUE)
        room -= len(short_key.encode()) + len(short_value.encode())
        if room < 0:
            break
        metadata[short_key] = short_value
    return metadata


def _cut(text: str, most: int) -> str:
    """Returns at most `most` bytes of UTF-8. Half a surrogate pair becomes a question mark."""
    data = text.encode(errors="replace")
    if len(data) <= most:
        return data.decode()
    return data[: most - 3].decode(errors="ignore") + "…"
