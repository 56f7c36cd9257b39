"""Tools that the caller runs, and their results, as requests bring them."""

import re
from collections.abc import Sequence
from typing import Final

from turnkeeper.domain.tool import ClientTool, ToolOutcome, ToolResult
from turnkeeper.errors import ToolValidationError
from turnkeeper.pb.v1 import chat_pb2
from turnkeeper.rpc.json_text import is_json
from turnkeeper.tools.toolbox import RESULT_BYTES
from turnkeeper.tools.untrusted_schema import flaw

NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
TOOLS_BYTES: Final = 64 * 1024
"""Of all names, descriptions and schemas of one message."""


def tools_of(request: chat_pb2.SendMessageRequest | chat_pb2.StreamMessageRequest) -> tuple[ClientTool, ...]:
    return tuple(
        ClientTool(name=tool.name, description=tool.description, schema_json=tool.schema_json)
        for tool in request.client_tools
    )


def problems(tools: Sequence[ClientTool]) -> dict[str, str]:
    """By field path, what no message may bring."""
    size = sum(len(text.encode()) for tool in tools for text in (tool.name, tool.description, tool.schema_json))
    if size > TOOLS_BYTES:
        return {"client_tools": f"have {size} bytes; at most {TOOLS_BYTES} are allowed"}
    found: dict[str, str] = {}
    names: set[str] = set()
    for number, tool in enumerate(tools):
        at = f"client_tools[{number}]"
        if not NAME.fullmatch(tool.name):
            found[f"{at}.name"] = f"must match {NAME.pattern}"
        elif tool.name in names:
            found[f"{at}.name"] = "is the name of another tool of this message"
        names.add(tool.name)
        if wrong := flaw(tool.schema_json):
            found[f"{at}.schema_json"] = wrong
    return found


def result_of(request: chat_pb2.SubmitToolResultRequest) -> ToolResult:
    """Raises ToolValidationError for what the model cannot be told."""
    text = request.result_json
    wrong = ""
    if len(text.encode()) > RESULT_BYTES:
        wrong = f"has {len(text.encode())} bytes; at most {RESULT_BYTES} are allowed"
    elif not is_json(text):
        wrong = "is not JSON; a plain text is written with quotes"
    if wrong:
        raise ToolValidationError(f"The result is not valid: result_json {wrong}.", fields={"result_json": wrong})
    return ToolResult(outcome=ToolOutcome.FAILED if request.failed else ToolOutcome.OK, result_json=text)
