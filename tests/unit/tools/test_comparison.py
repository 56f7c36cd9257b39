"""Arguments beside a schema: what fits, and that neither of them can make the comparison expensive or break it."""

import json
import time
from typing import Any

import pytest

from turnkeeper.tools.comparison import ArgumentsSchema, Steps

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
    assert (ArgumentsSchema({"type": "object", **schema}, is_trusted=False).problem(arguments) is None) == fits
    assert time.thread_time() - began < 2


@pytest.mark.parametrize(
    "dialect",
    [
        "https://json-schema.org/draft/2020-12/schema",
        "http://json-schema.org/draft-07/schema#",
        "http://json-schema.org/draft-03/schema#",
    ],
)
@pytest.mark.parametrize("is_trusted", [True, False])
def test_no_dialect_inside_a_schema_brings_expressions_back_that_take_exponential_time(
    dialect: str, is_trusted: bool
) -> None:
    part = {"$schema": dialect, "pattern": "(a+)+$"}
    schema = {"$schema": dialect, "properties": {"a": part, "b": {"$ref": "#/$defs/c"}}, "$defs": {"c": part}}
    text = "a" * 26 + "!"
    began = time.thread_time()
    problem = ArgumentsSchema(schema, is_trusted=is_trusted).problem({"a": text, "b": text})
    assert (problem is not None) == is_trusted
    assert time.thread_time() - began < 1


PARTS = {f"d{number}": {"title": "a part"} for number in range(4000)}
LARGE: dict[str, dict[str, Any]] = {
    "anchor": {"$ref": "#x", "$defs": {**PARTS, "x": {"$anchor": "x"}}},
    "dynamic anchor": {"$dynamicRef": "#x", "$defs": {**PARTS, "x": {"$dynamicAnchor": "x"}}},
    "long name": {"$ref": "#/$defs/" + "x" * 50_000, "$defs": {"x" * 50_000: {}}},
    "long constant": {"allOf": [{"const": [[[1]] * 2000]}] * 3},
    "long complaint": {"not": {"enum": ["x" * 50_000]}},
}


@pytest.mark.parametrize("name", LARGE)
def test_what_each_entry_looks_up_or_quotes_is_counted(name: str) -> None:
    """The anchors of 4,000 parts were searched for each entry: two minutes for one call."""
    part, size = dict(LARGE[name]), 100 if "anchor" in name else len(MANY)
    schema = ArgumentsSchema({"$defs": part.pop("$defs", {}), "properties": {"a": {"items": part}}}, is_trusted=False)
    began = time.thread_time()
    schema.problem({"a": [json.loads(json.dumps([[[1]] * 2000]))] * 100 if name == "long constant" else MANY[:size]})
    assert time.thread_time() - began < 1.5


ENDLESS = [
    {"$ref": "#"},
    {"$dynamicRef": "#"},
    {"if": {"$ref": "#"}, "then": {"$ref": "#"}},
    {"oneOf": [{"$ref": "#"}]},
    {"not": {"$ref": "#"}},
    {"dependentSchemas": {"a": {"anyOf": [{"$ref": "#"}]}}},
]


@pytest.mark.parametrize("schema", ENDLESS, ids=str)
@pytest.mark.parametrize("is_trusted", [True, False])
def test_references_in_a_circle_end_before_the_limit_of_frames(schema: dict[str, Any], is_trusted: bool) -> None:
    """A library in Rust panics where it meets that limit, and no `except Exception` catches it."""

    def problems(frames: int) -> set[str]:
        if frames:
            return problems(frames - 1)
        problem = ArgumentsSchema({"type": "object", **schema}, is_trusted=is_trusted).problem({"a": 1})
        return {problem.message if problem else ""}

    messages = set().union(*(problems(frames) for frames in range(60)))
    assert messages == {"The arguments cannot be compared with the tool's schema in time."}


def test_recursive_arguments_as_deep_as_json_may_be_are_compared() -> None:
    part = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/part"}]}
    many = {"oneOf": [{"type": "array", "items": {"$ref": "#/$defs/part"}}, {"type": "null"}]}
    schema = ArgumentsSchema(
        {"$ref": "#/$defs/part", "$defs": {"part": {"type": "object", "properties": {"a": part, "b": many}}}},
        is_trusted=False,
    )
    for key, wrap in (("a", lambda inner: {"a": inner}), ("b", lambda inner: {"b": [inner]})):
        fits: dict[str, Any] = {key: None}
        fails: dict[str, Any] = {key: 1 if key == "a" else [1]}
        for _ in range(63 if key == "a" else 31):
            fits, fails = wrap(fits), wrap(fails)
        assert schema.problem(fits) is None
        problem = schema.problem(fails)
        assert problem is not None
        assert "is not" in problem.message


def test_a_panic_is_a_failure_of_the_schema() -> None:
    class Panic(BaseException):
        pass

    class Schema(dict[str, Any]):
        def get(self, *_: object) -> object:
            raise Panic

    problem = ArgumentsSchema(Schema({"type": "object", "$id": "x"}), is_trusted=False).problem({})
    assert problem is not None
    assert "(Panic)" in problem.message


def test_a_comparison_with_too_many_steps_ends_with_its_reason() -> None:
    problem = ArgumentsSchema(DOUBLING, is_trusted=False).problem({})
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
    problem = ArgumentsSchema({"type": "object", **schema}, is_trusted=True).problem(arguments, steps=Steps(500_000))
    assert (problem is None) == (complaint == "")
    assert complaint in (problem.message if problem else "")
    assert time.thread_time() - began < 2


def test_several_comparisons_share_their_steps() -> None:
    schema, steps = {"properties": {"a": {"items": {"type": "integer"}}}}, Steps(30_000)
    results = [ArgumentsSchema(schema, is_trusted=False).problem({"a": MANY}, steps=steps) for _ in range(3)]
    assert results[0] is None
    assert all(problem is not None and "in time" in problem.message for problem in results[1:])
