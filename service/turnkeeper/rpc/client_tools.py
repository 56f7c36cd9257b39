"""The tools that a client runs, and their results: read from requests, and checked."""

from collections.abc import Sequence
from typing import Final

from turnkeeper.domain import json_text
from turnkeeper.domain.tool import ClientTool, ToolOutcome, ToolResult
from turnkeeper.errors import ToolValidationError
from turnkeeper.pb.v1 import chat_pb2
from turnkeeper.tools.naming import FORM
from turnkeeper.tools.results import RESULT_BYTES
from turnkeeper.tools.untrusted_schema import schema_problem

TOOLS_BYTES: Final = 64 * 1024
"""Bytes of all names, descriptions and schemas in one message."""


def tools_of(request: chat_pb2.SendMessageRequest | chat_pb2.StreamMessageRequest) -> tuple[ClientTool, ...]:
    """Returns the client's tools in the request's order."""
    return tuple(
        ClientTool(name=tool.name, description=tool.description, schema_json=tool.schema_json)
        for tool in request.client_tools
    )


def problems(tools: Sequence[ClientTool]) -> dict[str, str]:
    """Returns what is wrong with a message's tools, by field path; empty if nothing is."""
    size = sum(len(text.encode()) for tool in tools for text in (tool.name, tool.description, tool.schema_json))
    if size > TOOLS_BYTES:
        return {"client_tools": f"have {size} bytes; at most {TOOLS_BYTES} are allowed"}
    wrong: dict[str, str] = {}
    names: set[str] = set()
    for number, tool in enumerate(tools):
        path = f"client_tools[{number}]"
        if not FORM.fullmatch(tool.name):
            wrong[f"{path}.name"] = f"must match {FORM.pattern}"
        elif tool.name in names:
            wrong[f"{path}.name"] = "is the name of another tool of this message"
        names.add(tool.name)
        if problem := schema_problem(tool.schema_json):
            wrong[f"{path}.schema_json"] = problem
    return wrong


def result_of(request: chat_pb2.SubmitToolResultRequest) -> ToolResult:
    """Returns the result of a call. Raises ToolValidationError if it is too large, or a model cannot be sent it."""
    text = request.result_json
    if len(text.encode()) > RESULT_BYTES:
        problem = f"has {len(text.encode())} bytes; at most {RESULT_BYTES} are allowed"
    else:
        problem = json_text.problem_of(text)
        problem += "; a plain text is written with quotes" if problem == json_text.NO_JSON else ""
    if problem:
        raise ToolValidationError(f"The result is not valid: result_json {problem}.", fields={"result_json": problem})
    return ToolResult(outcome=ToolOutcome.FAILED if request.failed else ToolOutcome.OK, result_json=text)
