"""What a remembered decision is bound to: each part of it is one that makes a later call ask."""

from dataclasses import replace
from typing import Any

import pytest

from turnkeeper.domain.policy import Ruling
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec
from turnkeeper.engine.rules.remembered import binding_of

SPEC = ToolSpec(
    name="act",
    description="Acts.",
    schema_json='{"type":"object"}',
    tool_class=ToolClass.IDEMPOTENT,
    source="python:samples",
)
RULING = Ruling(action=PolicyAction.APPROVE, rule="acts", rule_text='tool = "act"')


def binding(*, spec: ToolSpec = SPEC, ruling: Ruling = RULING, causers: frozenset[str] = frozenset({"anna"})) -> str:
    return binding_of(spec, ruling, causers=causers)


@pytest.mark.parametrize(
    "changed",
    [
        {"spec": replace(SPEC, name="act2")},
        {"spec": replace(SPEC, description="Acts twice.")},
        {"spec": replace(SPEC, schema_json='{"type":"object","properties":{}}')},
        {"spec": replace(SPEC, tool_class=ToolClass.READ_ONLY)},
        {"spec": replace(SPEC, source="python:others")},
        {"spec": replace(SPEC, asks=True)},
        {"ruling": replace(RULING, rule="others")},
        {"ruling": replace(RULING, rule_text='tool = "act", k = 2')},
        {"causers": frozenset({"bob"})},
        {"causers": frozenset({"anna", "bob"})},
        {"causers": frozenset[str]()},
    ],
    ids=lambda changed: next(iter(changed)),  # the order of a set differs between processes
)
def test_each_part_of_it_counts(changed: dict[str, Any]) -> None:
    assert binding(**changed) != binding()


def test_the_order_of_people_and_the_note_do_not_count() -> None:
    people = binding(causers=frozenset({"anna", "bob"}))
    assert people == binding_of(SPEC, RULING, causers=("bob", "anna"))
    assert binding(ruling=replace(RULING, note="Ask Ada first.")) == binding()
