"""Canonical JSON, the hash of an approval, and the life of a call."""

import json
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import NOON, a_call, a_session_key
from turnkeeper.domain.newer_version import unspecified
from turnkeeper.domain.tool import (
    CallState,
    ToolClass,
    ToolOutcome,
    ToolSpec,
    canonical_json,
    decision_hash,
    model_text,
)

PLACE = a_session_key(session_id="session")
SPEC = ToolSpec(
    name="send",
    description="Send.",
    schema_json='{"type":"object"}',
    tool_class=ToolClass.IRREVERSIBLE,
    source="python",
)
ARGUMENTS = '{"to":"Ada","text":"hello"}'

texts = st.text(alphabet=st.characters())  # with surrogates, controls and all
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_canonical_json_means_the_same(value: Any) -> None:
    assert json.loads(canonical_json(json.dumps(value))) == value


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_two_texts_with_one_meaning_are_one_text(value: Any, ascii_only: bool, indent: int | None) -> None:
    written = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert canonical_json(written) == canonical_json(json.dumps(value, separators=(", ", " : ")))


@given(values)
def test_canonical_json_is_its_own_canonical_form(value: Any) -> None:
    once = canonical_json(json.dumps(value))
    assert canonical_json(once) == once


@given(values)
def test_no_invisible_character_is_left(value: Any) -> None:
    shown = canonical_json(json.dumps(value))
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    shown.encode()  # and it can be sent


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ('{"b": 1, "a": [true, null]}', '{"a":[true,null],"b":1}'),
        ('"h\\u00e9llo"', '"héllo"'),
        ('"a\\u202eb"', '"a\\u202eb"'),
        ('"a\u202eb"', '"a\\u202eb"'),
        ('"a\u200bb"', '"a\\u200bb"'),
        ('"\u00ad\u2066\ufeff"', '"\\u00ad\\u2066\\ufeff"'),
        ('"\U000e0041"', '"\\udb40\\udc41"'),
        ('"\ufe0f\U000e0100"', '"\\ufe0f\\udb40\\udd00"'),
        ('"\u3164\u115f\u034f"', '"\\u3164\\u115f\\u034f"'),
        ('"\\n"', '"\\n"'),
        ('{"\u200b": 1}', '{"\\u200b":1}'),
        ("1.0", "1.0"),
        ("1", "1"),
        ("1e2", "100.0"),
    ],
    ids=[
        "keys are sorted, spaces gone",
        "letters stay letters",
        "an escaped bidirectional mark stays escaped",
        "a bare bidirectional mark is escaped",
        "zero-width space",
        "soft hyphen, isolate, byte order mark",
        "a tag character, as its two halves",
        "variation selectors",
        "fillers that have no shape",
        "a line break",
        "in keys too",
        "a float stays a float",
        "a whole number stays whole",
        "an exponent is written out",
    ],
)
def test_examples(text: str, canonical: str) -> None:
    assert canonical_json(text) == canonical


@pytest.mark.parametrize("text", ["", "{", "nonsense", "NaN", "[Infinity]", "-Infinity", "1e999", "{'a': 1}"])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words differ
        canonical_json(text)


def test_json_too_deep_to_read_is_refused_as_any_other() -> None:
    with pytest.raises(ValueError, match="deep"):
        canonical_json("[" * 200_000)


CALL = a_call(PLACE, source="python", schema_hash="s", description_hash="d", model_words="I send it.", shown=("c1",))


@pytest.mark.parametrize(
    "change",
    [
        {"source": "mcp"},
        {"tool": "send_all"},
        {"schema_hash": "s2"},
        {"description_hash": "d2"},
        {"tool_class": ToolClass.IDEMPOTENT},
        {"arguments_json": '{"to":"Eve"}'},
        {"rule": "refunds"},
        {"rule_text": 'tool = "*", k = 2'},
        {"model_words": "I send it twice."},
        {"shown": ("c1", "c2")},
        {"shown": ("c1c2",)},
        {"untrusted": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_of_what_is_shown_changes_the_hash(change: dict[str, Any]) -> None:
    assert decision_hash(replace(CALL, **change)) != decision_hash(CALL)


@pytest.mark.parametrize("change", [{"note": "Look at the order."}, {"round": 2}, {"state": CallState.READY}])
def test_what_is_not_decided_on_does_not_change_the_hash(change: dict[str, Any]) -> None:
    assert decision_hash(replace(CALL, **change)) == decision_hash(CALL)


def test_the_parts_of_the_hash_cannot_run_together() -> None:
    assert decision_hash(replace(CALL, source="a", tool="bc")) != decision_hash(replace(CALL, source="ab", tool="c"))


@pytest.mark.parametrize(
    ("result", "text"), [('"plain"', "plain"), ('{"a":1}', '{"a":1}'), ("[1]", "[1]"), ("null", "null"), ('""', "")]
)
def test_what_a_model_reads_of_a_result(result: str, text: str) -> None:
    assert model_text(result) == text


@pytest.mark.parametrize("state", CallState)
def test_only_a_ready_call_starts(state: CallState) -> None:
    call = a_call(PLACE, state=state)
    if state is CallState.READY:
        started = call.start(attempt=2, fence=3, at=NOON)
        assert (started.state, started.attempt, started.fence, started.started) == (CallState.STARTED, 2, 3, True)
        return
    with pytest.raises(ValueError, match="cannot start"):
        call.start(attempt=2, fence=3, at=NOON)


@pytest.mark.parametrize("tool_class", ToolClass)
def test_a_lost_call_starts_again_only_where_repeating_is_harmless(tool_class: ToolClass) -> None:
    call = a_call(PLACE, state=CallState.STARTED, tool_class=tool_class, started=True)
    if not tool_class.may_start_again:
        with pytest.raises(ValueError, match="cannot start again"):
            call.ready_again()
        return
    again = call.ready_again()
    assert (again.state, again.key, again.started) == (CallState.READY, call.key, True)


@pytest.mark.parametrize("state", [CallState.AWAITING, CallState.READY, CallState.RETURNED])
def test_what_was_not_started_is_not_lost(state: CallState) -> None:
    with pytest.raises(ValueError, match="cannot start again"):
        a_call(PLACE, state=state, tool_class=ToolClass.READ_ONLY).ready_again()


def test_a_call_returns_once() -> None:
    returned = a_call(PLACE, state=CallState.STARTED).returned(ToolOutcome.OK)
    assert (returned.state, returned.outcome) == (CallState.RETURNED, ToolOutcome.OK)
    with pytest.raises(ValueError, match="has returned before"):
        returned.returned(ToolOutcome.FAILED)


def test_i17_a_class_that_only_a_newer_version_knows_may_not_start_again() -> None:
    assert not unspecified(ToolClass).may_start_again
