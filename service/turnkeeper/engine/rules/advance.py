"""What follows by itself from an owner's decision, in the same changeset: an end, a wait, or the start of tools."""

from collections.abc import Callable
from dataclasses import dataclass

from turnkeeper.copies import replace
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.message import Usage
from turnkeeper.domain.tool import Call, PolicyAction
from turnkeeper.domain.tool_events import ToolStarted
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
from turnkeeper.engine.rules.audit import CANCEL_TURN, Operation, record_operation
from turnkeeper.engine.rules.tool_calls import changes_of, facts_of, refuse_start, request_new_approval
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.policy.policies import Policies
from turnkeeper.tools.toolbox import Toolbox

CHANGED_AT_ONCE = 32
"""Calls that one decision passes over because they may not start as they are: comparing their arguments takes time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A turn's owner, as far as a decision depends on it."""

    agent: Agent
    toolbox: Toolbox
    policies: Policies
    fence: int
    running: frozenset[str]
    """Ids of the calls whose tools this owner runs, whose late results it awaits, or that wait for room."""
    releasing: bool
    """True if it starts nothing new, because it will hand the turn over."""
    has_room: Callable[[Call], bool] = lambda _: True
    """Returns True if a READY call may start. Otherwise it waits for room, and counts as running from then on."""
    placed: frozenset[str] = frozenset()
    """Ids of the READY calls that have waited for room, and have it."""


def due_step(turn: Turn, calls: tuple[Call, ...], owner: Owner) -> Step:
    """Returns the turn's next step, within the agent's limits or the lower ones that the caller set."""
    limits, requested = owner.agent.limits, turn.options.max_iterations
    return next_step(
        turn,
        calls,
        running=owner.running,
        max_iterations=min(requested, limits.max_iterations) if requested else limits.max_iterations,
        parallel_tools=limits.parallel_tools,
        placed=owner.placed,
    )


def advance_turn(uow: UnitOfWork, owner: Owner) -> tuple[Call, ...]:
    """Adds what follows by itself: the turn is cancelled if that was requested, it ends, it waits, or calls start.

    After an end the next queued turn becomes active. Returns the calls that are STARTED: the owner runs their tools as
    soon as the changeset is stored, and not before.
    """
    started: tuple[Call, ...] = ()
    if uow.turn.state is TurnState.RUNNING:
        cancel = uow.snapshot.head.cancel
        if cancel.turn_id == uow.turn.id:
            uow.cancel_turn(uow.turn, reason=CancelReason(cancel.reason), by=cancel.by)
            operation = Operation(action=CANCEL_TURN, origin=cancel.origin) if cancel.origin else None
            record_operation(uow, operation, sequence=uow.next_sequence - 1, target=uow.turn.id)
        else:
            started = _apply_due_step(uow, owner)
    if uow.turn.state.ended:
        uow.activate_next_turn()
    return started


def _apply_due_step(uow: UnitOfWork, owner: Owner) -> tuple[Call, ...]:
    """Applies the due step, and those that follow, if they need nothing from outside.

    Returns the calls that are STARTED. Stops after CHANGED_AT_ONCE calls that may not start: the owner's next decision
    goes on with the rest.
    """
    changed = 0
    while changed < CHANGED_AT_ONCE:
        match due_step(uow.turn, uow.calls, owner):
            case Complete(stop_reason=stop_reason):
                turn_rules.complete(uow, stop_reason)
            case Fail(error=error):
                uow.fail_turn(error)
            case AwaitAnswers(calls=calls):
                uow.await_answers(calls)
            case RunTools(calls=calls) if not (owner.releasing or uow.snapshot.head.suspended):
                started, passed_over = _start_calls(uow, calls, owner, most_changed=CHANGED_AT_ONCE - changed)
                if started or not passed_over:  # without either, all of them wait for room
                    return started
                changed += passed_over
                continue
            case RunTools() | CallModel() | AwaitResults() | ResolveLost():
                pass
        break
    return ()


def _start_calls(
    uow: UnitOfWork, calls: tuple[Call, ...], owner: Owner, *, most_changed: int
) -> tuple[tuple[Call, ...], int]:
    """Marks calls as STARTED, before anything is sent to their tools.

    A call gets a new round of approval instead if it is no longer what was proposed or approved, or if another call of
    its tool became UNKNOWN since. One without room stays READY, and waits. Returns the STARTED ones, and how many did
    not stay as they were: `most_changed` at most.
    """
    starts_again = any(call.started and call.attempt == uow.turn.attempt for call in calls)
    launch: list[Call] = []
    changed = 0
    for call in calls:
        if not _may_start(uow, call, owner):
            changed += 1
            if changed == most_changed:
                break
            continue
        if not owner.has_room(call):
            continue
        if starts_again and not launch:
            # A call that timed out starts again under the same owner: a late result names the attempt it belongs to.
            uow.put_turn(uow.turn.next_attempt(next_message_id=uow.turn.next_message_id, at=uow.at))
        started = call.start(attempt=uow.turn.attempt, fence=owner.fence, at=uow.at)
        uow.put_call(started)
        uow.append(ToolStarted(tool_call_id=call.id, tool=call.tool, key=call.key), turn=uow.turn)
        launch.append(started)
    if launch or changed:
        usage = uow.turn.usage + Usage(tool_calls=len(launch))
        uow.put_turn(replace(uow.turn, usage=usage, update_time=uow.at))
    return tuple(launch), changed


def _may_start(uow: UnitOfWork, call: Call, owner: Owner) -> bool:
    """Returns True if the call may start as it is, by its tool and its agent's rules of today.

    Otherwise the call is closed, or a new round asks a person: then it does not start.
    """
    spec = owner.toolbox.find(owner.agent, call.tool)
    if spec is None:
        refuse_start(uow, call, None, is_listed=owner.toolbox.is_complete)
        return False
    facts = facts_of(uow.turn, uow.session, spec, arguments_json=call.arguments_json, untrusted=call.untrusted)
    ruling = owner.policies.ruling_on(owner.agent, facts)
    if ruling.action is PolicyAction.DENY:
        refuse_start(uow, call, ruling)
        return False
    changed = changes_of(uow, call, spec, ruling)
    if changed:
        request_new_approval(uow, call, spec, ruling, changed=changed, toolbox=owner.toolbox)
        return False
    return True
