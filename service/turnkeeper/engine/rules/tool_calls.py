"""Decisions on the tool calls that a model requests: before any of them runs, and on a client's result."""

import json
from dataclasses import replace

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.event import ToolCalled
from turnkeeper.domain.policy import Ruling, ruling_on, with_ruling
from turnkeeper.domain.tool import (
    CLIENT,
    Call,
    CallState,
    PolicyAction,
    ToolClass,
    ToolOutcome,
    ToolResult,
    ToolSpec,
    approval_hash,
)
from turnkeeper.engine.rules.remembered import approve_by_memory, binding_of
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import ToolValidationError
from turnkeeper.tools.comparison import Steps
from turnkeeper.tools.toolbox import CheckedRequest, Toolbox

DECISION_STEPS = 5_000
"""Steps of a comparison inside a decision, at most: about 20 ms. It is rare: the tool changed while the call waited."""
DENIED = Ruling(action=PolicyAction.DENY)
"""What becomes of a call that no policy is read for: its tool does not exist, or does not take its arguments."""
MOST_SHOWN = 64
"""Characters of a name that a model made up, in the result that it receives: a tool's own name has no more."""


def propose(uow: UnitOfWork, checked: CheckedRequest, position: int, *, agent: Agent) -> None:
    """Stores the call that the model requests, at `position` in its message, as the agent's policy decides.

    The call is then READY, or waits for a person or for the client. If there is no such tool, if it does not take the
    arguments, or if the policy denies it, the call is closed by a result that gives the reason to the model.
    """
    spec = checked.spec
    ruling = DENIED if spec is None or checked.problem else _ruling(agent, spec, uow)
    call = _call(uow, checked, position, ruling=ruling)
    if spec is None:
        _refuse(uow, call, ToolOutcome.NOT_FOUND, f"There is no tool named {call.tool[:MOST_SHOWN]}.")
        return
    if checked.problem:
        _refuse(uow, call, ToolOutcome.INVALID_ARGUMENTS, checked.problem)
        return
    match ruling.action:
        case _ if spec.source == CLIENT:
            _enter(uow, call)
            uow.request_client_tool(call)
        case PolicyAction.AUTO | PolicyAction.NOTIFY:
            _enter(uow, call)
        case PolicyAction.APPROVE:
            call = replace(call, binding=binding_of(spec, ruling, causers=uow.turn.causers))
            _enter(uow, call)
            approve_by_memory(uow, uow.request_approval(call, ruling=ruling))
        case PolicyAction.DENY:
            _refuse(uow, call, ToolOutcome.DENIED, "The agent's policy denies this tool.")


def is_unchanged(call: Call, spec: ToolSpec | None, *, agent: Agent) -> bool:
    """Returns True if what would run now is what was proposed or approved: tool, arguments and policy (I14).

    `spec` is the tool as it is today, None if it is gone.
    """
    if spec is None:
        return False
    return call.arguments_hash == approval_hash(spec, arguments_json=call.arguments_json, policy_version=agent.version)


def request_new_approval(uow: UnitOfWork, call: Call, *, agent: Agent, toolbox: Toolbox) -> None:
    """Opens a new round for a call whose tool, arguments or policy changed since it was proposed or approved.

    Closes the call instead if its tool is gone, or no longer takes the arguments.
    """
    spec = toolbox.find(agent, call.tool)
    if spec is None:
        _close(uow, call, ToolOutcome.NOT_FOUND, f"There is no tool named {call.tool} any more.")
        return
    try:
        canonical = toolbox.check(spec, call.arguments_json, steps=Steps(DECISION_STEPS))
    except ToolValidationError as error:
        _close(uow, call, ToolOutcome.INVALID_ARGUMENTS, error.message)
        return
    fresh_hash = approval_hash(spec, arguments_json=canonical, policy_version=agent.version)
    ruling = ruling_on(agent.policy, spec)
    changed = replace(
        call,
        arguments_json=canonical,
        arguments_hash=fresh_hash,
        tool_class=spec.tool_class,
        binding=binding_of(spec, ruling, causers=uow.turn.causers),
    )
    uow.request_approval(changed, ruling=ruling)


def shows_all_unknown(uow: UnitOfWork, call: Call) -> bool:
    """Returns True if the call was let start with all other UNKNOWN calls of its tool in view."""
    return set(uow.session.unknown_calls(call.tool, but=call.id)) <= set(call.shown)


def submit_result(uow: UnitOfWork, tool_call_id: str, result: ToolResult, *, by: str, through: str = "") -> bool:
    """Stores the result that a client submits, and that the turn goes on if it waits for nothing else.

    `by` is the principal, `through` its delegate if there is one. Returns False, with nothing changed, if the call does
    not wait for the client.
    """
    call = next((call for call in uow.calls if call.id == tool_call_id), None)
    if call is None or call.state is not CallState.REQUESTED:
        return False
    uow.put_turn(uow.turn.also_caused_by(by, through))
    uow.close_call(call.submitted(result, by=by, through=through, sequence=uow.next_sequence), result)
    uow.resume_if_answered()
    return True


def _ruling(agent: Agent, spec: ToolSpec, uow: UnitOfWork) -> Ruling:
    """Returns the policy's ruling; AUTO for a client's tool.

    A tool of which the session holds an UNKNOWN call asks, whatever the policy lets through.
    """
    if spec.source == CLIENT:
        return Ruling(action=PolicyAction.AUTO)
    ruling = ruling_on(agent.policy, spec)
    return ruling.asking() if uow.session.unknown_calls(spec.name) else ruling


def _call(uow: UnitOfWork, checked: CheckedRequest, position: int, *, ruling: Ruling) -> Call:
    """Returns the requested call: READY if its tool is the service's and may run. An unknown tool is IRREVERSIBLE."""
    turn, request, spec = uow.turn, checked.request, checked.spec
    runs = ruling.runs and spec is not None and spec.source != CLIENT
    call = Call(
        id=request.tool_call_id,
        tenant=turn.tenant,
        session_id=turn.session_id,
        turn_id=turn.id,
        message_id=turn.next_message_id,
        position=position,
        tool=request.tool,
        arguments_json=checked.arguments_json,
        arguments_hash=checked.arguments_hash,
        tool_class=ToolClass.IRREVERSIBLE if spec is None else spec.tool_class,
        action=ruling.action,
        state=CallState.READY if runs else CallState.AWAITING,
        key=f"{turn.session_id}:{request.tool_call_id}",
        source="" if spec is None else spec.source,
    )
    return with_ruling(call, ruling)


def _enter(uow: UnitOfWork, call: Call) -> None:
    uow.put_call(call, new=True)
    uow.append(
        ToolCalled(
            tool_call_id=call.id,
            tool=call.tool,
            arguments_json=call.arguments_json,
            arguments_hash=call.arguments_hash,
            action=call.action,
            tool_class=call.tool_class,
            message_id=call.message_id,
            rule=call.rule,
        ),
        turn=uow.turn,
    )


def _refuse(uow: UnitOfWork, call: Call, outcome: ToolOutcome, reason: str) -> None:
    _enter(uow, call)
    _close(uow, call, outcome, reason)


def _close(uow: UnitOfWork, call: Call, outcome: ToolOutcome, reason: str) -> None:
    result = ToolResult(outcome=outcome, result_json=json.dumps({"error": reason}, ensure_ascii=False))
    uow.close_call(call, result)
