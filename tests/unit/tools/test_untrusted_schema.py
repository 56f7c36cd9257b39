"""Schemas that callers send: what is accepted, as JSON Schema's own meta-schema has it, and what it may cost."""

import json
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cpu_time import least_cpu_seconds
from turnkeeper.tools.untrusted_schema import KEYWORDS, MOST_PARTS, schema_problem


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ('{"type":"object"}', ""),
        ('{"type":"object","properties":{"pattern":{"type":"string","pattern":"^a+$"}}}', ""),
        ('{"type":"object","$defs":{"a":{}},"properties":{"$ref":{"$ref":"#/$defs/a"}}}', ""),
        (
            '{"type":"object","properties":{"a":{"$id":"http://[::1"}}}',
            "is not a JSON Schema: properties/a/$id does not",
        ),
        ('{"type":"object","$schema":"http://json-schema.org/draft-07/schema#"}', ""),
        (
            '{"type":"object","properties":{"a":{"$schema":"http://json-schema.org/draft-04/schema#","id":5}}}',
            "has $schema in properties/a; only the whole schema may name its dialect",
        ),
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ('{"type":NaN}', "is not JSON"),
        ("[" * 60_000, "is nested deeper than 64 levels"),
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
        ('{"type":"object","properties":{"patternProperties":{"type":"string"}}}', ""),
        ('{"type":"object","properties":{"a":{"default":{"$ref":"http://127.0.0.1/x"}}}}', ""),
        (
            '{"type":"object","properties":{"a":{"$ref":"#/properties/b/type"},"b":{"type":"string"}}}',
            "refers to #/properties/b/type, where it has no schema",
        ),
        ('{"type":"object","$ref":"#/properties","properties":{"type":{}}}', "refers to #/properties, where it has no"),
        ('{"type":"object","$ref":"#/$defs/none"}', "refers to #/$defs/none, where it has no schema"),
        ('{"type":"object","allOf":[{}],"$ref":"#/allOf/' + "9" * 5000 + '"}', "refers to #/allOf/999"),
        ('{"type":"object","allOf":[{"$ref":"#/$defs/a~1b%25"}],"$defs":{"a/b%":{}}}', ""),
        ('{"type":"object","properties":{"a":{"multipleOf":' + "1" * 400 + "}}}", "is not JSON"),
        (
            '{"type":"object","properties":{"a":{"pattern":"a{99999999999999999999}"}}}',
            "is not a JSON Schema: properties",
        ),
    ],
)
def test_what_is_wrong_with_a_schema(schema: str, wrong: str) -> None:
    reason = schema_problem(schema)
    assert reason.startswith(wrong)
    assert bool(reason) == bool(wrong)
    assert schema_problem(schema) == reason


values: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, 1, -1, 1.0, 1.5, "", "a", "^a", "#", "object", [], ["a"], ["a", "a"], ["string", "null"], {}]
)
names = st.sampled_from([*sorted(KEYWORDS), "const", "default", "unknown"])
schemas = st.recursive(
    values, lambda inner: st.dictionaries(names, inner | st.lists(inner, max_size=2), max_size=3), max_leaves=12
)


@given(st.dictionaries(names, schemas | st.lists(schemas, max_size=2), max_size=4))
def test_the_forms_of_the_keywords_are_those_of_the_meta_schema(keywords: dict[str, Any]) -> None:
    schema = {**keywords, "type": "object"}
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError:
        fits = False
    else:
        fits = True
    ours = schema_problem(json.dumps(schema))
    if ours.startswith(("has patternProperties", "has $schema", "refers to")):
        return  # what is refused beyond the meta-schema
    assert (ours == "") == fits, ours


COSTLY = [
    {"allOf": [{}] * 21_000},
    {"properties": {str(number): {"type": "string"} for number in range(2400)}},
    {"allOf": [{"$ref": "#/" + "allOf/0/" * 7000}]},
    {"allOf": [{"$ref": "#/$defs/a"}] * 2800, "$defs": {"a": {}}},
    {"properties": {str(n): {"pattern": "(?i)[\u0000-\U0010ffff]"} for n in range(700)}},
    {"properties": {str(n): {"pattern": "[\u0000-\uffff]" * 17} for n in range(200)}},
    {"$defs": {str(n): {"pattern": "[\u0100-\ufff0]" * 50 + str(n)} for n in range(16)}},
    {"dependentSchemas": {str(n): {"pattern": r"[\u0100-\ufff0]" * 16 + str(n)} for n in range(16)}},
    {"enum": list(range(9000))},
    {"required": [str(number) for number in range(9000)]},
]


@pytest.mark.parametrize("keywords", COSTLY, ids=lambda keywords: next(iter(keywords)))
def test_the_check_of_64_kib_takes_a_fraction_of_100_ms(keywords: dict[str, Any]) -> None:
    tries = iter(
        [
            json.dumps({"type": "object", **keywords, "title": title}, ensure_ascii=False, separators=(",", ":"))
            for title in "abc"  # another schema each time: the answer is kept
        ]
    )

    def check() -> None:
        re.purge()
        schema_problem(next(tries))

    assert least_cpu_seconds(check, tries=3) < 0.08


def test_c_a_schema_that_was_checked_is_not_even_parsed_again() -> None:
    schema = json.dumps({"type": "object", "title": "checked twice", "allOf": [{}] * 99})
    first, second, another = (calls_of_a_check(text) for text in (schema, schema, schema + " "))
    assert first["_schema_problem"] == 1
    assert first["_fits"] > 1
    assert second == {"schema_problem": 1}
    assert another == first, "it is another text"


def calls_of_a_check(schema: str) -> Counter[str]:
    """Checks a schema. Returns how often each function of our own was called meanwhile."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "turnkeeper" in frame.f_globals["__name__"]:
            calls[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        schema_problem(schema)
    finally:
        sys.setprofile(None)
    return calls


def test_a_schema_has_so_many_parts_at_most() -> None:
    assert schema_problem(json.dumps({"type": "object", "allOf": [{}] * (MOST_PARTS - 3)})) == ""
    assert (
        schema_problem(json.dumps({"type": "object", "allOf": [{}] * (MOST_PARTS - 2)}))
        == f"has more than {MOST_PARTS} parts"
    )


def test_several_threads_examine_schemas_at_the_same_time() -> None:
    def examine(number: int) -> set[str]:
        return {schema_problem(json.dumps({"type": "object", "title": f"{number}-{one}"})) for one in range(3_000)}

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(examine, range(4))) == [{""}] * 4
    finally:
        sys.setswitchinterval(before)
