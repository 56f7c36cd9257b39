"""What a tool server sends, as values of the service: its tools, durations, and times."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from turnkeeper.domain.json_text import object_problem
from turnkeeper.domain.tool import ToolClass, ToolSpec
from turnkeeper.pb.tools.v1 import tool_pb2
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.naming import foreign_name, full_name
from turnkeeper.tools.server_limits import DESCRIPTION, MOST_TOOLS, SECOND_OF_ITS_NAME, listed_problem

CLASS: Final = "class"
"""The annotation by which a server states the class of a tool; it can only tighten what the catalogue states."""
_DEFAULT_RETRY: Final = timedelta(seconds=1)
_LONGEST_RETRY: Final = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class Described:
    """The tools of one list, as Turnkeeper has them."""

    specs: Sequence[ToolSpec]
    foreign: Mapping[str, str]
    """The tools' names at the server, by their full names."""
    refused: Mapping[str, str]
    """Why others cannot be offered, by their full names."""


def described(source: str, response: tool_pb2.ListToolsResponse) -> Described:
    """Returns the tools; of two with one name the first. Takes up to a second: call it beside the event loop."""
    specs: dict[str, ToolSpec] = {}
    foreign: dict[str, str] = {}
    refused: dict[str, str] = {}
    for tool in response.tools[:MOST_TOOLS]:
        name = full_name(source, tool.name)
        if problem := _problem(tool) or (SECOND_OF_ITS_NAME if name in specs else ""):
            refused[name] = problem
            continue
        foreign[name] = tool.name
        specs[name] = ToolSpec(
            name=name,
            description=(tool.description or tool.name)[:DESCRIPTION],
            schema_json=json.dumps(json.loads(tool.schema_json), sort_keys=True, separators=(",", ":")),
            tool_class=_class(tool),
            source=source,
            foreign_name=foreign_name(name, tool.name),
        )
    if len(response.tools) > MOST_TOOLS:
        first_left = full_name(source, response.tools[MOST_TOOLS].name)
        refused[first_left] = f"of the {len(response.tools)} tools only {MOST_TOOLS} are taken"
    return Described(specs=tuple(specs.values()), foreign=foreign, refused=refused)


def retry_after_of(running: tool_pb2.Running) -> timedelta:
    """Returns when to request an answer again: not at once, and within a minute."""
    if not running.HasField("retry_after"):
        return _DEFAULT_RETRY
    seconds = running.retry_after.seconds + running.retry_after.nanos / 1e9
    return max(timedelta(milliseconds=100), min(timedelta(seconds=min(seconds, 3_600)), _LONGEST_RETRY))


def start_time_of(context: ToolContext) -> Timestamp | None:
    """Returns when the start was stored; None if an older version stored it."""
    if context.start_time is None:
        return None
    time = Timestamp()
    time.FromDatetime(context.start_time)
    return time


def _problem(tool: tool_pb2.Tool) -> str:
    """Returns why this cannot be a tool; empty if it can."""
    problem = object_problem(tool.schema_json) or listed_problem(tool.schema_json)
    return f"its schema {problem}" if problem else ""


def _class(tool: tool_pb2.Tool) -> ToolClass:
    """Returns the class that the server states; without one the least strict, which the catalogue tightens."""
    stated = dict(tool.annotations).get(CLASS, "read_only")
    classes = {one.value.lower(): one for one in ToolClass}
    return classes.get(stated, ToolClass.IRREVERSIBLE) if isinstance(stated, str) else ToolClass.IRREVERSIBLE
