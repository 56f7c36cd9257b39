"""READY calls that do not start: those without room stay as they are, those without a tool are closed with words."""

import json
from collections.abc import Callable
from datetime import timedelta

import pytest

from tests.builders import NOON, a_call, new_id
from tests.unit.engine.rules.test_outcomes import ASKER, PLACE, unit_of_work
from tests.unit.tools.test_toolbox import SERVERS, a_box
from turnkeeper.copies import replace
from turnkeeper.domain.tool import Call, CallState, ToolClass, ToolOutcome
from turnkeeper.domain.tool_events import ToolReturned
from turnkeeper.engine.rules.advance import Owner, advance_turn
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.policy.policies import Policies
from turnkeeper.tools import samples
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.toolbox import Toolbox

AGENT = replace(ASKER, tools=("*",))


def an_owner(toolbox: Toolbox, *, has_room: Callable[[Call], bool] = lambda _: True) -> Owner:
    return Owner(
        agent=AGENT,
        toolbox=toolbox,
        policies=Policies({}),
        fence=2,
        running=frozenset(),
        releasing=False,
        has_room=has_room,
    )


def ready(tool: str, arguments_json: str = "{}", **given: object) -> Call:
    call = {"turn_id": "turn", "state": CallState.READY, "tool_class": ToolClass.READ_ONLY, **given}
    return a_call(PLACE, tool=tool, arguments_json=arguments_json, **call)


@pytest.mark.parametrize("has_started", [True, False])
def test_a_call_without_room_changes_nothing(has_started: bool) -> None:
    call = ready("current_time", started=has_started, attempt=2 if has_started else 0)
    uow = UnitOfWork(unit_of_work(call).snapshot, at=NOON + timedelta(seconds=1), new_id=new_id)
    before = uow.turn
    assert advance_turn(uow, an_owner(Toolbox([PythonTools([samples.current_time])]), has_room=lambda _: False)) == ()
    assert (uow.turn, uow.calls, list(uow.events)) == (before, (call,), [])


def test_a_call_with_room_starts_beside_one_without() -> None:
    calls = (ready("current_time", position=0), ready("current_time", position=1))
    uow = unit_of_work(*calls)
    owner = an_owner(Toolbox([PythonTools([samples.current_time])]), has_room=lambda call: call.id == calls[1].id)
    (started,) = advance_turn(uow, owner)
    assert started.id == calls[1].id
    assert uow.turn.usage.tool_calls == 1


@pytest.mark.parametrize(
    ("has_list", "outcome", "words"),
    [
        (True, ToolOutcome.NOT_FOUND, "There is no tool named time__now any more."),
        (False, ToolOutcome.FAILED, "The server of time__now cannot be reached now; try again later."),
    ],
)
def test_a_call_of_a_tool_that_is_not_here_is_closed_with_words(
    has_list: bool, outcome: ToolOutcome, words: str
) -> None:
    box, time, git = a_box(SERVERS)
    git.offer("log")
    if has_list:
        time.offer("zone")
    uow = unit_of_work(ready("time__now", source="time"))
    assert advance_turn(uow, an_owner(box)) == ()
    (returned,) = [event.payload for event in uow.events if isinstance(event.payload, ToolReturned)]
    assert returned.outcome is outcome
    assert json.loads(returned.result_json) == {"error": words}
