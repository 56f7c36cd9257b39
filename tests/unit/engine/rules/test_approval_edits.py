"""An approver's own arguments are checked as a model's are, and calls that became UNKNOWN since are shown first."""

from collections.abc import Sequence
from functools import partial

import pytest

from tests.builders import AGENT, a_call, a_session_key, an_approval
from tests.unit.engine.rules.test_outcomes import unit_of_work
from turnkeeper.domain.policy import Ruling
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec
from turnkeeper.engine.rules.approval_edits import Edit, check_edit, open_next_round
from turnkeeper.engine.rules.tool_calls import shows_all_unknown
from turnkeeper.errors import ToolNotFound, ToolPermissionDenied
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.toolbox import Toolbox

PLACE: SessionKey = a_session_key()
SPEC = ToolSpec(
    name="search_web", description="", schema_json='{"type":"object"}', tool_class=ToolClass.IRREVERSIBLE, source="test"
)


class Source:
    listing = 1

    def specs(self) -> Sequence[ToolSpec]:
        return (SPEC,)

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        raise NotImplementedError


def let_run(spec: ToolSpec, arguments_json: str) -> Ruling:
    return Ruling(action=PolicyAction.AUTO)


def test_a_tool_that_the_policy_denies_cannot_be_edited_into_running() -> None:
    def deny(spec: ToolSpec, arguments_json: str) -> Ruling:
        assert (spec.name, arguments_json) == ("search_web", '{"query":"x"}'), "the policy reads what is edited"
        return Ruling(action=PolicyAction.DENY)

    with pytest.raises(ToolPermissionDenied):
        check_edit(an_approval(PLACE), '{"query":"x"}', agent=AGENT, toolbox=Toolbox([Source()]), rule_on=deny)


def test_a_tool_that_is_gone_cannot_be_edited() -> None:
    with pytest.raises(ToolNotFound):
        check_edit(an_approval(PLACE), "{}", agent=AGENT, toolbox=Toolbox([]), rule_on=let_run)


def test_other_arguments_have_another_hash_and_the_same_ones_are_no_edit() -> None:
    check = partial(check_edit, an_approval(PLACE), agent=AGENT, toolbox=Toolbox([Source()]), rule_on=let_run)
    assert check('{ "query" : "weather" }') is None
    one = check('{"b":1, "a":2}')
    assert one is not None
    assert one.arguments_json == '{"a":2,"b":1}'


def test_a_call_that_became_unknown_since_is_shown_before_the_edited_call_runs() -> None:
    session_unknown = unit_of_work().session.with_unknown("search_web", "lost-since").unknown
    call = a_call(PLACE, turn_id="turn")
    approval = an_approval(PLACE, turn_id="turn", tool_call_id=call.id)
    uow = unit_of_work(call, unknown=session_unknown)
    ruling = Ruling(action=PolicyAction.AUTO)
    [spec] = Source().specs()
    edit = Edit(arguments_json="{}", spec=spec, ruling=ruling)
    second = open_next_round(uow, approval, edit)
    assert second.unknown_tool_call_ids == ("lost-since",)
    (edited,) = uow.calls
    assert edited.arguments_json == "{}"
    assert not shows_all_unknown(uow, edited)
