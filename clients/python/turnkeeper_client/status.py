"""Reads the details of a gRPC status."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Protocol

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from turnkeeper_client.errors import FAMILIES, Details, SessionError, TransportError
from turnkeeper_client.pb.v1.error_pb2 import SessionErrorCode, SessionErrorDetail

DOMAIN = "turnkeeper"
DETAILS_KEY = "grpc-status-details-bin"
CODE_PREFIX = "SESSION_ERROR_CODE_"


class Failure(Protocol):
    """The error of a call, of `grpc` or of `grpc.aio`."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def from_rpc_error(error: Failure) -> SessionError | TransportError:
    """Returns a SessionError if the service itself sent the error, otherwise a TransportError."""
    message = error.details() or ""
    details = read_details(error)
    if details is None:
        return TransportError(error.code(), message)
    return FAMILIES.get(error.code(), SessionError)(error.code(), message, details)


def read_details(error: Failure) -> Details | None:
    """Returns the details that the service sent with the error. Returns None if the error is not the service's."""
    raw = next((value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY), None)
    if not isinstance(raw, bytes):
        return None
    try:
        details = list(unpack(raw))
    except DecodeError:
        return None
    ours = next((detail for detail in details if isinstance(detail, SessionErrorDetail)), None)
    info = next((detail for detail in details if isinstance(detail, error_details_pb2.ErrorInfo)), None)
    if info is not None and info.domain != DOMAIN:
        info = None
    if ours is None and info is None:
        return None
    ours = ours or SessionErrorDetail()
    code = ours.code or code_of(info.reason if info else "")
    return Details(
        code=code,
        reason=info.reason if info else reason_of(code),
        session_id=ours.session_id,
        turn_id=ours.turn_id,
        cursor=ours.cursor,
        retry=ours.retry,
        retry_after=retry_after(ours, details),
        metadata={**(info.metadata if info else {}), **ours.metadata},
        fields=invalid_fields(details),
    )


def unpack(raw: bytes) -> Iterator[object]:
    """Yields the details of a `google.rpc.Status` whose types are known. Raises DecodeError."""
    known = (SessionErrorDetail, error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest)
    packed: AnyMessage
    for packed in status_pb2.Status.FromString(raw).details:
        for kind in known:
            if packed.Is(kind.DESCRIPTOR):
                yield kind.FromString(packed.value)


def retry_after(ours: SessionErrorDetail, details: list[object]) -> timedelta | None:
    """Returns the least time to wait, from RetryInfo or else from the service's own detail; None if neither has one."""
    for detail in details:
        if isinstance(detail, error_details_pb2.RetryInfo):
            delay: timedelta = detail.retry_delay.ToTimedelta()
            return delay
    return ours.retry_after.ToTimedelta() if ours.HasField("retry_after") else None


def invalid_fields(details: list[object]) -> dict[str, str]:
    """Returns what is wrong with each invalid field, by the field's path."""
    requests = (detail for detail in details if isinstance(detail, error_details_pb2.BadRequest))
    return {wrong.field: wrong.description for request in requests for wrong in request.field_violations}


def code_of(reason: str) -> SessionErrorCode.ValueType:
    """Returns the number of a reason, or UNSPECIFIED for one of a later release."""
    name = CODE_PREFIX + reason
    return SessionErrorCode.Value(name) if name in SessionErrorCode.keys() else SessionErrorCode.ValueType(0)  # noqa: SIM118


def reason_of(code: SessionErrorCode.ValueType) -> str:
    """Returns the name of a number without its prefix, or the number itself for one of a later release."""
    known = SessionErrorCode.DESCRIPTOR.values_by_number.get(code)
    return known.name.removeprefix(CODE_PREFIX) if known else str(int(code))
