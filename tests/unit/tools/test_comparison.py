"""Arguments beside a schema: what fits, and that neither of them can make the comparison expensive or break it."""

import time
from typing import Any

import pytest

from turnkeeper.tools.comparison import Steps, arguments_problem

DOUBLING = {
    "type": "object",
    "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)} | {"40": {"type": "object"}},
    "$ref": "#/$defs/0",
}
MANY = list(range(12_000))


@pytest.mark.parametrize(
    ("schema", "arguments", "fits"),
    [
        ({"required": ["a"]}, {"a": 1}, True),
        ({"required": ["a"]}, {}, False),
        ({"properties": {"a": {"enum": [1, 2]}}}, {"a": 3}, False),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"type": "string"}}}, {"a": 3}, False),
        ({"additionalProperties": False}, {"a": 3}, False),
        ({"properties": {"a": {"anyOf": [{"type": "null"}, {"minimum": 2}]}}}, {"a": 3}, True),
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 40 + "b"}, True),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [1, 1]}, True),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, {"a": 3}, False),
        ({"$ref": "#"}, {}, False),
        (DOUBLING, {}, False),
        ({"properties": {"a": {"$ref": "#/properties/b/type"}, "b": {"type": "string"}}}, {"a": 1}, False),
        ({"$ref": "#/properties", "properties": {"type": {}}}, {}, False),
        ({"properties": {"a": {"multipleOf": 0.5}}}, {"a": 10**400}, False),
        ({"properties": {"a": {"multipleOf": 10**400}}}, {"a": 1.5}, False),
        ({"properties": {"a": {"type": "strange"}}}, {"a": 1}, False),
        ({"patternProperties": {"^(a+)+$": {"type": "null"}}}, {"a" * 40 + "b": 1}, True),
        ({"allOf": [{"items": {}, "properties": {"a": {"items": {}}}}] * 5000}, {"a": [1] * 30_000}, False),
        ({"anyOf": [{"type": "null"}] * 5000}, {"a": MANY}, False),
        ({"properties": {"a": {"items": {"enum": list(range(1000))}}}}, {"a": [-1] * 30_000}, False),
    ],
)
def test_whether_arguments_fit_and_how_long_it_takes(schema: dict[str, Any], arguments: object, fits: bool) -> None:
    began = time.thread_time()
    assert (arguments_problem({"type": "object", **schema}, arguments, is_trusted=False) is None) == fits
    assert time.thread_time() - began < 2


def test_a_comparison_with_too_many_steps_ends_with_its_reason() -> None:
    problem = arguments_problem(DOUBLING, {}, is_trusted=False)
    assert problem is not None
    assert "in time" in problem.message


@pytest.mark.parametrize(
    ("schema", "arguments", "complaint"),
    [
        ({"properties": {"a": {"type": "array", "items": {"type": "integer"}}}}, {"a": MANY}, ""),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [1, 1.0]}, "non-unique"),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [1, True, [1], [True], {"a": 1}, {"b": 1}, "1"]}, ""),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [one for n in MANY for one in (n, str(n))]}, ""),
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 40 + "b"}, "does not match"),
        ({"properties": {"a": {"pattern": "^(a|a)*$"}}}, {"a": "a" * 60_000}, ""),
        ({"properties": {"a": {"pattern": "(?=a)b"}}}, {"a": "x"}, ""),
        ({"patternProperties": {"^(a+)+$": {"type": "null"}}}, {"a" * 40 + "b": 1, "aa": 1}, "is not of type 'null'"),
        ({"patternProperties": {"^a": {}}, "additionalProperties": False}, {"a": 1, "b": 1}, "'b' does not match any"),
        ({"patternProperties": {"^a": {}}, "additionalProperties": {"type": "null"}}, {"b": 1}, "is not of type"),
    ],
)
def test_an_operators_schema_is_checked_whole_in_linear_time(
    schema: dict[str, Any], arguments: object, complaint: str
) -> None:
    began = time.thread_time()
    problem = arguments_problem({"type": "object", **schema}, arguments, is_trusted=True, steps=Steps(500_000))
    assert (problem is None) == (complaint == "")
    assert complaint in (problem.message if problem else "")
    assert time.thread_time() - began < 2


def test_several_comparisons_share_their_steps() -> None:
    schema, steps = {"properties": {"a": {"items": {"type": "integer"}}}}, Steps(30_000)
    results = [arguments_problem(schema, {"a": MANY}, is_trusted=False, steps=steps) for _ in range(3)]
    assert results[0] is None
    assert all(problem is not None and "in time" in problem.message for problem in results[1:])
