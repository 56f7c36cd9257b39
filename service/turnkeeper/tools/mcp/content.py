"""The result of an MCP tool as the model reads it."""

from typing import Any, Final

import mcp_types as types

from turnkeeper.tools.contract import ToolError
from turnkeeper.tools.mcp.link import one_line
from turnkeeper.tools.mcp.listing import Listed
from turnkeeper.tools.results import result_text

_NOT_SHOWN: Final = "not shown"


def value_of(result: types.CallToolResult) -> Any:
    """Returns the result: its structured content, or else its texts, one to a line; None if it has neither.

    A line stands for each image, sound and resource: no part of a message can hold them yet.
    """
    lines = [_line(block) for block in result.content]
    texts = "\n".join(lines)
    if result.structured_content is None and "structured_content" not in result.model_fields_set:
        return texts if lines else None
    others = [
        line for line, block in zip(lines, result.content, strict=True) if not isinstance(block, types.TextContent)
    ]
    return {"result": result.structured_content, "also": others} if others else result.structured_content


def text_of(result: types.CallToolResult, tool: Listed) -> str:
    """Returns the result as JSON text. Takes up to 0.2 s if the tool has a schema of results.

    Raises ToolError for a tool that failed, or whose result does not fit its schema, and UnfitResult.
    """
    if result.is_error:
        texts = "\n".join(_line(block) for block in result.content)
        raise ToolError(texts or "The tool failed without a message.")
    text = result_text(value_of(result))
    if tool.output_json and (problem := tool.problem_of(result.structured_content)):
        raise ToolError(f"The tool ran, and its result does not fit its own schema of results: {problem}")
    return text


def _line(block: types.ContentBlock) -> str:
    """Returns a text as it is, and a line in place of anything else."""
    match block:
        case types.TextContent():
            return block.text
        case types.ImageContent() | types.AudioContent():
            return f"[{block.type}, {one_line(block.mime_type)}, {len(block.data) * 3 // 4} bytes: {_NOT_SHOWN}]"
        case types.ResourceLink():
            return f"[resource {one_line(block.uri)}, {one_line(block.mime_type or block.name)}: {_NOT_SHOWN}]"
        case types.EmbeddedResource():
            resource = block.resource
            return f"[resource {one_line(resource.uri)}, {one_line(resource.mime_type or 'no type')}: {_NOT_SHOWN}]"
