"""What follows from an owner's draft alone: an end, a wait, the start of tools, in the same step. No I/O."""

from dataclasses import dataclass, replace

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.event import ToolStarted
from turnkeeper.domain.message import Usage
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import (
    AwaitAnswers,
    AwaitResults,
    CallModel,
    CancelReason,
    Complete,
    Fail,
    ResolveLost,
    RunTools,
    Step,
    Turn,
    TurnState,
    next_step,
)
from turnkeeper.engine.rules import turns as turn_rules
from turnkeeper.engine.rules.tool_calls import is_unchanged, request_new_approval, shows_all_unknown
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.tools.toolbox import Toolbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """What a decision must know of whoever runs the turn.

    `running` names the calls whose tools it has in hand. `releasing`: it starts nothing new.
    """

    agent: Agent
    toolbox: Toolbox
    fence: int
    running: frozenset[str]
    releasing: bool


def due_step(turn: Turn, calls: tuple[Call, ...], owner: Owner) -> Step:
    """What the turn must do next, within the agent's limits and those that the caller lowered."""
    limits, asked = owner.agent.limits, turn.options.max_iterations
    return next_step(
        turn,
        calls,
        running=owner.running,
        max_iterations=min(asked, limits.max_iterations) if asked else limits.max_iterations,
        parallel_tools=limits.parallel_tools,
    )


def advance_turn(uow: UnitOfWork, owner: Owner) -> tuple[Call, ...]:
    """Add to the draft whatever follows from it; the calls whose tools start once it is stored."""
    launch: tuple[Call, ...] = ()
    if uow.turn.state is TurnState.RUNNING:
        wish = uow.snapshot.head.cancel
        if wish.turn_id == uow.turn.id:
            uow.cancel_turn(uow.turn, reason=CancelReason(wish.reason), by=wish.by)
        else:
            launch = _settle(uow, owner)
    if uow.turn.state.ended:
        uow.activate_next_turn()
    return launch


def _settle(uow: UnitOfWork, owner: Owner) -> tuple[Call, ...]:
    match due_step(uow.turn, uow.calls, owner):
        case Complete(stop_reason=stop_reason):
            turn_rules.complete(uow, stop_reason)
        case Fail(error=error):
            uow.fail_turn(error)
        case AwaitAnswers(calls=calls):
            uow.await_answers(calls)
        case RunTools(calls=calls) if not (owner.releasing or uow.snapshot.head.suspended):
            return _begin_calls(uow, calls, owner)
        case RunTools() | CallModel() | AwaitResults() | ResolveLost():
            pass
    return ()


def _begin_calls(uow: UnitOfWork, calls: tuple[Call, ...], owner: Owner) -> tuple[Call, ...]:
    """STARTED is stored before the first byte leaves; what changed since it was approved is asked again.

    So is a call of a tool whose outcome became unknown in the meantime.
    """
    launch: list[Call] = []
    for call in calls:
        spec = owner.toolbox.find(owner.agent, call.tool)
        if not (is_unchanged(call, spec, agent=owner.agent) and shows_all_unknown(uow, call)):
            request_new_approval(uow, call, agent=owner.agent, toolbox=owner.toolbox)
            continue
        started = call.start(attempt=uow.turn.attempt, fence=owner.fence)
        uow.put_call(started)
        uow.append(ToolStarted(tool_call_id=call.id, tool=call.tool, key=call.key), turn=uow.turn)
        launch.append(started)
    usage = uow.turn.usage + Usage(tool_calls=len(launch))
    uow.put_turn(replace(uow.turn, usage=usage, update_time=uow.at))
    return tuple(launch) or _settle(uow, owner)
