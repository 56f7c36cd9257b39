"""How values of the service are written for people: ids, states, times, durations."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from turnkeeper_client.pb.v1 import agent_pb2

SHORT: Final = 6
"""Characters of an id's end that are shown, and taken, in its place."""
_GENERATED: Final = re.compile(r"[0-9a-hjkmnp-tv-z]{26}")
"""An id that the service has made; one that a caller has chosen is shown whole."""
_LONGEST: Final = 60


def short(identifier: str) -> str:
    """Returns the end of a generated id, which every command takes; another id as it is."""
    return identifier[-SHORT:] if _GENERATED.fullmatch(identifier) else identifier


def shortened(identifiers: Iterable[str]) -> Mapping[str, str]:
    """Returns each id as it may be written beside the others: two with the same end are whole."""
    identifiers = list(identifiers)
    ends = [short(identifier) for identifier in identifiers]
    return {whole: end if ends.count(end) == 1 else whole for whole, end in zip(identifiers, ends, strict=True)}


def word(enum: Any, number: int) -> str:
    """Returns the name of an enum's value in small letters, without the enum's own: `awaiting approval`.

    `enum` is a generated enum. A number of a later release is returned as it is.
    """
    known = enum.DESCRIPTOR.values_by_number.get(number)
    if known is None:
        return str(int(number))
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.DESCRIPTOR.name).upper()
    name: str = known.name
    return name.removeprefix(f"{prefix}_").replace("_", " ").lower()


def clock(time: Timestamp) -> str:
    """Returns the time of day by this machine's time zone."""
    return _local(time).strftime("%H:%M:%S")


def day(time: Timestamp) -> str:
    """Returns the day and the minute by this machine's time zone."""
    return _local(time).strftime("%Y-%m-%d %H:%M")


def ago(time: Timestamp) -> str:
    """Returns how long ago a time is: `3 min`."""
    return span(datetime.now(UTC) - time.ToDatetime(tzinfo=UTC))


def left(time: Timestamp) -> str:
    """Returns how long it is to a time."""
    return span(time.ToDatetime(tzinfo=UTC) - datetime.now(UTC))


def seconds(duration: Duration) -> str:
    """Returns a short duration: `0.25 s`."""
    return f"{duration.ToTimedelta().total_seconds():.2g} s"


def span(time: timedelta) -> str:
    """Returns a time in its largest unit, cut: `3 min`. A negative one is `0 s`."""
    whole = max(0, int(time.total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def in_one_line(text: str, *, longest: int = _LONGEST) -> str:
    """Returns the beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def source_of(tool: agent_pb2.AgentTool) -> str:
    """Returns where a tool comes from, with its name there if that had to be mapped: `files: read.text`."""
    return f"{tool.source}: {in_one_line(tool.foreign_name)}" if tool.foreign_name else tool.source


def _local(time: Timestamp) -> datetime:
    return time.ToDatetime(tzinfo=UTC).astimezone()
