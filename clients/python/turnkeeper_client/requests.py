"""What requests are made of: ids, contents, times."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from math import isfinite
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from turnkeeper_client.pb.v1.message_pb2 import Part

# Seconds. The service configs have the same limits for the raw stubs, but only a limit given with the call reaches
# the service.
UNARY_TIMEOUT = 10.0
WAIT_TIMEOUT = 130.0
STREAM_TIMEOUT = 900.0

# A time: seconds as a number, or a timedelta.
Seconds = float | timedelta


def new_request_id() -> str:
    """Returns a new id for one logical call; it stays the same when the call is repeated."""
    return uuid4().hex


def parts(content: str | Sequence[Part]) -> Sequence[Part]:
    """Returns a message's content: text alone becomes one part."""
    return [Part(text=content)] if isinstance(content, str) else content


def timestamp(value: datetime, name: str) -> Timestamp:
    """Converts to a protobuf timestamp. Raises ValueError for a time without a zone."""
    if value.tzinfo is None:
        raise ValueError(f"{name} needs a time zone; for example: {name}=datetime.now(UTC) + timedelta(days=7)")
    converted = Timestamp()
    converted.FromDatetime(value)
    return converted


def duration(value: Seconds | None, name: str = "wait") -> Duration | None:
    """Converts to a protobuf duration; None stays unset. Raises ValueError for less than nothing, or no finite time."""
    if value is None:
        return None
    try:
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not isfinite(seconds) or seconds < 0 or isinstance(value, str | bool):
        raise ValueError(f"{name} is seconds, 0 or more, or a timedelta; not {value!r}. For example: {name}=5")
    converted = Duration()
    try:
        converted.FromTimedelta(value if isinstance(value, timedelta) else timedelta(seconds=seconds))
    except (OverflowError, ValueError):
        raise ValueError(f"{name} is too long: {value!r}. For example: {name}=5") from None
    return converted
