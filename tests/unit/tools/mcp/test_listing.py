"""The tools of an MCP server and their results: classes that only tighten, and what is not offered or not shown."""

import json
from typing import Any

import mcp_types as types
import pytest

from turnkeeper.domain.tool import ToolClass
from turnkeeper.tools.contract import ToolError
from turnkeeper.tools.mcp.content import text_of
from turnkeeper.tools.mcp.listing import Listed, least_class, listed
from turnkeeper.tools.server_limits import DESCRIPTION, SECOND_OF_ITS_NAME

OBJECT = {"type": "object"}


def a_tool(name: str = "act", **fields: Any) -> types.Tool:
    return types.Tool.model_validate({"name": name, "inputSchema": OBJECT, **fields})


def one(**fields: Any) -> Listed:
    """Returns a tool as it is listed."""
    tools, refused = listed("git", [a_tool(**fields)])
    assert not refused
    (tool,) = tools.values()
    return tool


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (None, ToolClass.READ_ONLY),
        ({}, ToolClass.READ_ONLY),
        ({"readOnlyHint": True}, ToolClass.READ_ONLY),
        ({"readOnlyHint": True, "idempotentHint": False}, ToolClass.READ_ONLY),
        ({"idempotentHint": False}, ToolClass.READ_ONLY),  # has no meaning without readOnlyHint = false
        ({"readOnlyHint": False}, ToolClass.IDEMPOTENT),
        ({"readOnlyHint": False, "idempotentHint": True}, ToolClass.IDEMPOTENT),
        ({"readOnlyHint": False, "idempotentHint": False}, ToolClass.IRREVERSIBLE),
    ],
)
def test_annotations_state_the_least_class(annotations: dict[str, bool] | None, expected: ToolClass) -> None:
    stated = None if annotations is None else types.ToolAnnotations.model_validate(annotations)
    assert least_class(stated) is expected
    assert one(annotations=annotations).spec.tool_class is expected


def test_a_tool_without_a_description_has_its_title_or_name() -> None:
    assert one(description="d", title="t").spec.description == "d"
    assert one(title="t").spec.description == "t"
    assert one().spec.description == "act"
    assert len(one(description="d" * 100_000).spec.description) == DESCRIPTION


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string"}, 'must be a JSON object with "type": "object"'),
        ({"type": "object", "properties": {"a": {"$ref": "http://other.test/"}}}, "refers to another document"),
        ({"type": "object", "properties": {"a": {"type": 7}}}, "does not fit its meta-schema"),
        ({"type": "object", "description": "d" * 70_000}, "has more than 65536 bytes"),
    ],
)
def test_a_schema_that_cannot_be_used_leaves_its_tool_out(schema: dict[str, Any], reason: str) -> None:
    tools, refused = listed("git", [a_tool("bad", inputSchema=schema), a_tool("good")])
    assert list(tools) == ["git__good"]
    assert reason in refused["bad"]


def test_of_two_tools_with_one_name_the_first_is_offered() -> None:
    tools, refused = listed("git", [a_tool("log"), a_tool("log", description="another"), a_tool("add")])
    assert list(tools) == ["git__add", "git__log"]
    assert tools["git__log"].spec.description == "log"
    assert refused == {"log": SECOND_OF_ITS_NAME}


def test_a_schema_of_results_that_cannot_be_used_checks_nothing() -> None:
    assert one(outputSchema={"type": "object", "$ref": "http://other.test/"}).problem_of(7) == ""


def a_result(*content: dict[str, Any], **fields: Any) -> types.CallToolResult:
    return types.CallToolResult.model_validate({"content": list(content), **fields})


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (a_result(), None),
        (a_result({"type": "text", "text": ""}), ""),
        (a_result({"type": "text", "text": "a"}, {"type": "text", "text": "b"}), "a\nb"),
        (a_result({"type": "text", "text": "[]"}, structuredContent=[]), []),
        (a_result(structuredContent=None), None),
        (a_result(structuredContent={"a": None}), {"a": None}),
        (
            a_result({"type": "audio", "data": "AAAA", "mimeType": "audio/wav\u202e\n"}, structuredContent={"a": 1}),
            {"result": {"a": 1}, "also": ["[audio, audio/wav\\u202e, 3 bytes: not shown]"]},
        ),
        (
            a_result({"type": "resource", "resource": {"uri": "file:///x" + "y" * 900, "text": "inner"}}),
            f"[resource file:///x{'y' * 191}, no type: not shown]",
        ),
    ],
)
def test_a_result_is_its_structure_or_its_texts(result: types.CallToolResult, expected: object) -> None:
    assert json.loads(text_of(result, one())) == expected


def test_a_result_that_does_not_fit_its_schema_is_a_failure_that_states_it_ran() -> None:
    tool = one(outputSchema={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    assert text_of(a_result(structuredContent={"n": 1}), tool) == '{"n": 1}'
    for result in (a_result(structuredContent={"n": "1"}), a_result(structuredContent={}), a_result()):
        with pytest.raises(ToolError, match="The tool ran, and its result does not fit"):
            text_of(result, tool)


def test_the_text_of_a_failure_is_the_models() -> None:
    with pytest.raises(ToolError, match=r"^out of paper$"):
        text_of(a_result({"type": "text", "text": "out of paper"}, isError=True), one())
    with pytest.raises(ToolError, match="without a message"):
        text_of(a_result(isError=True), one())
