"""Schemas that callers send: what is accepted, what is checked, and that neither can be made expensive."""

import json
import time
from typing import Any

import pytest

from turnkeeper.tools.untrusted_schema import arguments_problem, schema_problem

DOUBLING = {
    "type": "object",
    "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)} | {"40": {"type": "object"}},
    "$ref": "#/$defs/0",
}


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ('{"type":"object"}', ""),
        ('{"type":"object","properties":{"pattern":{"type":"string","pattern":"^a+$"}}}', ""),
        ('{"type":"object","$defs":{"a":{}},"properties":{"$ref":{"$ref":"#/$defs/a"}}}', ""),
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ('{"type":NaN}', "is not JSON"),
        ("[" * 60_000, "is not JSON"),
        ("[]", 'must be a JSON object with "type": "object"'),
        ("{}", 'must be a JSON object with "type": "object"'),
        ('{"type":"array"}', 'must be a JSON object with "type": "object"'),
        ('{"type":"object","required":"a"}', "is not a JSON Schema: required does not fit its meta-schema"),
        (
            '{"type":"object","properties":{"a":{"pattern":"("}}}',
            "is not a JSON Schema: properties/a/pattern does not fit its meta-schema",
        ),
        ('{"type":"object","allOf":[{"$ref":"http://127.0.0.1/x"}]}', "refers to another document; $ref may only"),
        ('{"type":"object","$dynamicRef":"other#x"}', "refers to another document; $dynamicRef may only"),
        ('{"type":"object","patternProperties":{"^(a+)+$":{}}}', "has patternProperties"),
    ],
)
def test_what_is_wrong_with_a_schema(schema: str, wrong: str) -> None:
    reason = schema_problem(schema)
    assert reason.startswith(wrong)
    assert bool(reason) == bool(wrong)


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
        ({"properties": {"a": {"items": {"enum": list(range(1000))}}}}, {"a": [-1] * 30_000}, False),
    ],
)
def test_whether_arguments_fit_and_how_long_it_takes(schema: dict[str, Any], arguments: object, fits: bool) -> None:
    began = time.monotonic()
    assert (arguments_problem({"type": "object", **schema}, arguments) is None) == fits
    assert time.monotonic() - began < 5


def test_a_comparison_with_too_many_steps_ends_with_its_reason() -> None:
    assert schema_problem(json.dumps(DOUBLING)) == ""
    problem = arguments_problem(DOUBLING, {})
    assert problem is not None
    assert "in time" in problem.message
