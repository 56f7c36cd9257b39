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
MOST_BYTES = 4096
"""More makes clients drop the status at random."""
MOST_TEXT = 500
"""Bytes of the message; gRPC writes each byte beyond ASCII as three."""
MOST_VALUE = 200
MOST_ENTRIES = 8
MOST_METADATA = 800
"""Bytes of all metadata: it is sent twice, and what is promised must fit beside it."""

RESOURCES = {
    Code.SESSION_NOT_FOUND: "session",
    Code.SESSION_ALREADY_EXISTS: "session",
    Code.TURN_NOT_FOUND: "turn",
    Code.APPROVAL_NOT_FOUND: "approval",
    Code.AGENT_NOT_FOUND: "agent",
    Code.AGENT_ALREADY_EXISTS: "agent",
    Code.CHECKPOINT_NOT_FOUND: "checkpoint",
}


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


def may_resume(code: Code) -> bool:
    """Returns True if a stream that this code ended may go on."""
    return advice(code, on_stream=True) == error_pb2.RETRY_ADVICE_RESUME_STREAM


def _options(code: Code) -> error_pb2.ErrorCodeOptions:
    value = error_pb2.SessionErrorCode.DESCRIPTOR.values_by_number[code]
    options: error_pb2.ErrorCodeOptions = value.GetOptions().Extensions[error_pb2.error_code]
    return options


def detail_of(status: Status, *, on_stream: bool = False) -> error_pb2.SessionErrorDetail:
    """Returns this service's own typed detail."""
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
    """The message as gRPC's own header carries it."""
    return _cut(status.message, MOST_TEXT)


def details_bytes(status: Status, *, on_stream: bool = False) -> bytes:
    """Returns the serialized google.rpc.Status with its details, each type once.

    ErrorInfo and our own detail are always there, others where they apply and fit.
    `on_stream`: the error ends a stream; its advice says whether the stream may go on, and when.
    """
    if on_stream and status.retry_after is None:
        status = replace(status, retry_after=stream_retry_after(status.code))
    made = status_pb2.Status(code=status.family, message=shown_message(status))
    info = error_details_pb2.ErrorInfo(reason=status.code.name, domain=DOMAIN, metadata=_metadata(status))
    for detail in (info, detail_of(status, on_stream=on_stream), *_standard(status)):
        packed = Any()
        packed.Pack(detail)
        if made.ByteSize() + packed.ByteSize() + 8 <= MOST_BYTES:
            made.details.append(packed)
    return bytes(made.SerializeToString())


def _standard(status: Status) -> list[Message]:
    found: list[Message] = []
    if status.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(status.retry_after)
        found.append(retry)
    if status.fields:
        found.append(_bad_request(status))
    if status.code in RESOURCES:
        kind = RESOURCES[status.code]
        own = {"session": status.session_id, "turn": status.turn_id}.get(kind, "")
        name = own or next(iter(status.metadata.values()), "")
        found.append(
            error_details_pb2.ResourceInfo(resource_type=f"turnkeeper.v1/{kind}", resource_name=_cut(name, MOST_VALUE))
        )
    if status.family.name == "FAILED_PRECONDITION":
        unmet = error_details_pb2.PreconditionFailure.Violation(
            type=status.code.name, subject=status.session_id, description=_cut(status.message, MOST_VALUE)
        )
        found.append(error_details_pb2.PreconditionFailure(violations=[unmet]))
    if status.code in (Code.QUOTA_EXCEEDED, Code.BUDGET_EXCEEDED, Code.RATE_LIMIT_EXCEEDED):
        quota = error_details_pb2.QuotaFailure.Violation(
            subject=status.session_id, description=_cut(status.message, MOST_VALUE)
        )
        found.append(error_details_pb2.QuotaFailure(violations=[quota]))
    return found


def _bad_request(status: Status) -> Message:
    """As many fields as there is room for."""
    made = error_details_pb2.BadRequest()
    for path, what in list(status.fields.items())[:MOST_ENTRIES]:
        violation = made.field_violations.add(field=_cut(path, MOST_VALUE), description=_cut(what, MOST_VALUE))
        if made.ByteSize() > MOST_METADATA and len(made.field_violations) > 1:
            made.field_violations.remove(violation)
            break
    return made  # type: ignore[no-any-return]


def _metadata(status: Status) -> dict[str, str]:
    """The ids first: they always fit."""
    known = {name: getattr(status, name) for name in ("session_id", "turn_id", "cursor") if getattr(status, name)}
    for key, value in status.metadata.items():
        known.setdefault(key, value)
    if status.fields:
        known.setdefault("fields", ",".join(status.fields))
    room, kept = MOST_METADATA, {}
    for key, value in list(known.items())[:MOST_ENTRIES]:
        name, told = _cut(key, 64), _cut(value, MOST_VALUE)
        room -= len(name.encode()) + len(told.encode())
        if room < 0:
            break
        kept[name] = told
    return kept


def _cut(text: str, most: int) -> str:
    """At most so many bytes of UTF-8; half a character becomes a question mark."""
    data = text.encode(errors="replace")
    if len(data) <= most:
        return data.decode()
    return data[: most - 3].decode(errors="ignore") + "…"
