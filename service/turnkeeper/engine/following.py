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
from turnkeeper.engine import decisions
from turnkeeper.engine.draft import Draft
from turnkeeper.engine.proposal import ask_again, shows_all_unknown, still_the_same
from turnkeeper.engine.toolbox import Toolbox


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


def follow_on(draft: Draft, owner: Owner) -> tuple[Call, ...]:
    """Add to the draft whatever follows from it; the calls whose tools start once it is stored."""
    launch: tuple[Call, ...] = ()
    if draft.turn.state is TurnState.RUNNING:
        wish = draft.snapshot.head.cancel
        if wish.turn_id == draft.turn.id:
            draft.cancel_turn(draft.turn, reason=CancelReason(wish.reason), by=wish.by)
        else:
            launch = _settle(draft, owner)
    if draft.turn.state.ended:
        draft.go_on_with_queue()
    return launch


def _settle(draft: Draft, owner: Owner) -> tuple[Call, ...]:
    match due_step(draft.turn, draft.calls, owner):
        case Complete(stop_reason=stop_reason):
            decisions.complete(draft, stop_reason)
        case Fail(error=error):
            draft.fail_turn(error)
        case AwaitAnswers(calls=calls):
            draft.let_go(calls)
        case RunTools(calls=calls) if not (owner.releasing or draft.snapshot.head.suspended):
            return _begin_calls(draft, calls, owner)
        case RunTools() | CallModel() | AwaitResults() | ResolveLost():
            pass
    return ()


def _begin_calls(draft: Draft, calls: tuple[Call, ...], owner: Owner) -> tuple[Call, ...]:
    """STARTED is stored before the first byte leaves; what changed since it was approved is asked again.

    So is a call of a tool whose outcome became unknown in the meantime.
    """
    launch: list[Call] = []
    for call in calls:
        spec = owner.toolbox.find(owner.agent, call.tool)
        if not (still_the_same(call, spec, agent=owner.agent) and shows_all_unknown(draft, call)):
            ask_again(draft, call, agent=owner.agent, toolbox=owner.toolbox)
            continue
        started = call.start(attempt=draft.turn.attempt, fence=owner.fence)
        draft.put_call(started)
        draft.say(ToolStarted(tool_call_id=call.id, tool=call.tool, key=call.key), turn=draft.turn)
        launch.append(started)
    usage = draft.turn.usage + Usage(tool_calls=len(launch))
    draft.put_turn(replace(draft.turn, usage=usage, update_time=draft.at))
    return tuple(launch) or _settle(draft, owner)
