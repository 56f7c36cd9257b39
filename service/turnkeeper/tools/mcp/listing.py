"""The tools of an MCP server as Turnkeeper has them: names, descriptions, schemas, classes."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mcp_types as types

from turnkeeper.domain.tool import ToolClass, ToolSpec
from turnkeeper.tools.comparison import ArgumentsSchema
from turnkeeper.tools.naming import foreign_name, full_name
from turnkeeper.tools.server_limits import DESCRIPTION, SECOND_OF_ITS_NAME, listed_problem


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A tool as its server lists it."""

    spec: ToolSpec
    foreign_name: str
    """What the server calls it."""
    output_json: str = ""
    """The JSON Schema of its results; empty without one, or if that cannot be used."""

    def problem_of(self, result: Any) -> str:
        """Returns why the result does not fit the tool's schema of results; empty if it does. Takes up to 0.2 s."""
        if not self.output_json:
            return ""
        problem = ArgumentsSchema(json.loads(self.output_json), is_trusted=False).problem(result)
        if problem is None:
            return ""
        where = "/".join(str(part) for part in problem.absolute_path) or "the result"
        return f"{where[:200]}: {problem.message[:300]}"


def listed(source: str, tools: Iterable[types.Tool]) -> tuple[dict[str, Listed], dict[str, str]]:
    """Returns the tools by their full names, and why others cannot be offered, by the server's names for them.

    Of two tools with one name the first is offered.
    """
    offered: dict[str, Listed] = {}
    refused: dict[str, str] = {}
    for tool in sorted(tools, key=lambda tool: tool.name):
        name = full_name(source, tool.name)
        schema_json = _written(tool.input_schema)
        if problem := listed_problem(schema_json):
            refused[tool.name] = f"its schema {problem}"
        elif name in offered:
            refused[tool.name] = SECOND_OF_ITS_NAME
        else:
            offered[name] = _tool(source, name, tool, schema_json)
    return offered, refused


def least_class(annotations: types.ToolAnnotations | None) -> ToolClass:
    """Returns the least class that the server's own words allow. What it leaves out states nothing.

    Annotations only tighten: a server that calls its tool read-only is not believed, one that does not is.
    """
    if annotations is None or annotations.read_only_hint is not False:
        return ToolClass.READ_ONLY
    return ToolClass.IRREVERSIBLE if annotations.idempotent_hint is False else ToolClass.IDEMPOTENT


def _tool(source: str, name: str, tool: types.Tool, schema_json: str) -> Listed:
    output_json = _written(tool.output_schema) if tool.output_schema is not None else ""
    if output_json and listed_problem(output_json):
        output_json = ""
    spec = ToolSpec(
        name=name,
        description=(tool.description or tool.title or tool.name)[:DESCRIPTION],
        schema_json=schema_json,
        tool_class=least_class(tool.annotations),
        source=source,
        foreign_name=foreign_name(name, tool.name),
    )
    return Listed(spec=spec, foreign_name=tool.name, output_json=output_json)


def _written(schema: Mapping[str, Any]) -> str:
    return json.dumps(schema, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
