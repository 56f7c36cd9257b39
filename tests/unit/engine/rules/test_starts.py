"""Calls that are about to start: what an older version let run, and what had started before."""

from dataclasses import replace

import pytest

from tests.builders import a_call
from tests.unit.engine.rules.test_outcomes import PLACE, S, started, unit_of_work
from turnkeeper.domain.policy import PolicyRule, Ruling
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec
from turnkeeper.domain.tool_events import ToolReturned
from turnkeeper.engine.rules.tool_calls import STARTED_BEFORE, changes_of, refuse_start


@pytest.mark.parametrize(
    ("tool_class", "action", "round_", "changed"),
    [
        (ToolClass.READ_ONLY, PolicyAction.AUTO, 0, ()),
        (ToolClass.IDEMPOTENT, PolicyAction.AUTO, 0, ()),
        (ToolClass.IDEMPOTENT, PolicyAction.APPROVE, 0, ("schema", "description", "rule")),
        (ToolClass.IDEMPOTENT, PolicyAction.AUTO, 1, ("schema", "description", "rule")),
        (ToolClass.IRREVERSIBLE, PolicyAction.AUTO, 0, ("schema", "description")),
    ],
)
def test_a_call_that_an_older_version_let_run_is_not_asked_for_if_it_may_be_repeated(
    tool_class: ToolClass, action: PolicyAction, round_: int, changed: tuple[str, ...]
) -> None:
    spec = ToolSpec(name="act", description="Acts.", schema_json="{}", tool_class=tool_class, source="python")
    call = a_call(PLACE, tool="act", source="python", tool_class=tool_class, state=S.READY, round=round_)
    ruling = PolicyRule(tool="*", action=action).ruling
    assert changes_of(unit_of_work(call), call, spec, ruling) == changed


@pytest.mark.parametrize("ruling", [Ruling(action=PolicyAction.DENY), None], ids=["denied", "gone"])
@pytest.mark.parametrize("was_started", [True, False])
def test_a_call_that_may_not_start_again_is_not_told_as_one_that_never_ran(
    *, ruling: Ruling | None, was_started: bool
) -> None:
    call = replace(started(), state=S.READY, started=was_started)
    uow = unit_of_work(call)
    refuse_start(uow, call, ruling)
    [returned] = [event for event in (new.payload for new in uow.events) if isinstance(event, ToolReturned)]
    assert returned.started is was_started
    assert (STARTED_BEFORE in returned.result_json) is was_started
