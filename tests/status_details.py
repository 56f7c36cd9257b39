"""Reads the details of an error as a client does."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import aio

from turnkeeper.pb.v1 import error_pb2

DETAILS = "grpc-status-details-bin"
MOST_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusDetails:
    """One error. `fields` are the paths that BadRequest names."""

    status: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str]
    detail: error_pb2.SessionErrorDetail
    retry_after: timedelta | None = None
    fields: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


@dataclass(slots=True)
class Refusal:
    """Filled when the block of `refused` has ended."""

    occurrences: list[StatusDetails] = field(default_factory=list)

    @property
    def details(self) -> StatusDetails:
        return self.occurrences[0]


@contextlib.contextmanager
def refused(reason: str) -> Iterator[Refusal]:
    """Asserts that the block raises this error of the service, with complete details."""
    refusal = Refusal()
    try:
        yield refusal
    except aio.AioRpcError as error:
        details = details_of(error)
        assert details.reason == reason, f"{details.reason}, not {reason}: {details.message}"
        refusal.occurrences.append(details)
        return
    raise AssertionError(f"no error; {reason} was expected")


def details_of(error: aio.AioRpcError) -> StatusDetails:
    """Checks on the way what every error owes: ErrorInfo and our detail, each type once, 4 KiB at most."""
    raw = dict(error.trailing_metadata() or ()).get(DETAILS)
    assert isinstance(raw, bytes), f"an error without details: {error.code().name}, {error.details()}"
    assert len(raw) <= MOST_BYTES
    assert len((error.details() or "").encode()) <= MOST_BYTES / 4, "the message alone would crowd the headers"
    status = status_pb2.Status.FromString(raw)
    assert status.code == error.code().value[0]
    types = tuple(packed.type_url.rpartition("/")[2] for packed in status.details)
    assert len(types) == len(set(types)), f"a type twice: {types}"
    info, detail = error_details_pb2.ErrorInfo(), error_pb2.SessionErrorDetail()
    assert _unpack(status.details, info), f"no ErrorInfo, only {types}"
    assert _unpack(status.details, detail), f"no SessionErrorDetail, only {types}"
    assert info.domain == "turnkeeper"
    assert error_pb2.SessionErrorCode.Name(detail.code) == f"SESSION_ERROR_CODE_{info.reason}"
    assert dict(info.metadata) == dict(detail.metadata)
    retry, bad = error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    has_retry = _unpack(status.details, retry)
    _unpack(status.details, bad)
    return StatusDetails(
        status=error.code(),
        reason=info.reason,
        message=error.details() or "",
        metadata=dict(info.metadata),
        detail=detail,
        retry_after=retry.retry_delay.ToTimedelta() if has_retry else None,
        fields=tuple(violation.field for violation in bad.field_violations),
        types=types,
    )


def _unpack(details: list[AnyMessage], message: object) -> bool:
    return any(packed.Unpack(message) for packed in details)
