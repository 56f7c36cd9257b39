"""What becomes of the tool calls a model asked for, before any of them runs."""

import json
from dataclasses import replace

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.event import ToolCalled
from turnkeeper.domain.message import ToolRequest
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
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import ToolValidationError
from turnkeeper.tools.toolbox import Toolbox


def propose(uow: UnitOfWork, request: ToolRequest, position: int, *, agent: Agent, toolbox: Toolbox) -> None:
    """Enter the call into the ledger: ready, waiting for a person, or closed by a result that says why not."""
    spec = toolbox.find(agent, request.tool, clients=uow.turn.options.client_tools)
    if spec is None:
        call = _call(uow, request, position)
        told = f"There is no tool named {request.tool}."
        _refuse(uow, call, ToolOutcome.NOT_FOUND, told)
        return
    try:
        canonical = toolbox.check(spec, request.arguments_json)
    except ToolValidationError as error:
        call = replace(_call(uow, request, position), tool_class=spec.tool_class, source=spec.source)
        _refuse(uow, call, ToolOutcome.INVALID_ARGUMENTS, error.message)
        return
    action = PolicyAction.AUTO if spec.source == CLIENT else _action(agent.rule_for(spec).action, spec, uow)
    call = replace(
        _call(uow, replace(request, arguments_json=canonical), position),
        tool_class=spec.tool_class,
        arguments_hash=approval_hash(spec, arguments_json=canonical, policy_version=agent.version),
        action=action,
        source=spec.source,
    )
    match action:
        case _ if spec.source == CLIENT:
            _enter(uow, call)
            uow.request_client_tool(call)
        case PolicyAction.AUTO | PolicyAction.NOTIFY:
            _enter(uow, replace(call, state=CallState.READY))
        case PolicyAction.APPROVE:
            _enter(uow, call)
            uow.request_approval(call, agent=agent)
        case PolicyAction.DENY:
            _refuse(uow, call, ToolOutcome.DENIED, "The agent's policy denies this tool.")


def is_unchanged(call: Call, spec: ToolSpec | None, *, agent: Agent) -> bool:
    """What was proposed, or approved, is what would run now (promise I14)."""
    if spec is None:
        return False
    return call.arguments_hash == approval_hash(spec, arguments_json=call.arguments_json, policy_version=agent.version)


def request_new_approval(uow: UnitOfWork, call: Call, *, agent: Agent, toolbox: Toolbox) -> None:
    """Tool or arguments changed in between: a new round with its own hash; no question where nothing can run."""
    spec = toolbox.find(agent, call.tool)
    if spec is None:
        told = f"There is no tool named {call.tool} any more."
        _close(uow, call, ToolOutcome.NOT_FOUND, told)
        return
    try:
        canonical = toolbox.check(spec, call.arguments_json)
    except ToolValidationError as error:
        _close(uow, call, ToolOutcome.INVALID_ARGUMENTS, error.message)
        return
    fresh = approval_hash(spec, arguments_json=canonical, policy_version=agent.version)
    changed = replace(call, arguments_json=canonical, arguments_hash=fresh, tool_class=spec.tool_class)
    uow.request_approval(changed, agent=agent)


def shows_all_unknown(uow: UnitOfWork, call: Call) -> bool:
    """Whoever let the call start knew of every other call of its tool whose outcome is unknown."""
    return set(uow.session.unknown_calls(call.tool, but=call.id)) <= set(call.shown)


def _action(action: PolicyAction, spec: ToolSpec, uow: UnitOfWork) -> PolicyAction:
    """While the session holds an unknown outcome of a tool, the tool asks, whatever the policy lets through."""
    if action is not PolicyAction.DENY and uow.session.unknown_calls(spec.name):
        return PolicyAction.APPROVE
    return action


def _call(uow: UnitOfWork, request: ToolRequest, position: int) -> Call:
    turn = uow.turn
    return Call(
        id=request.tool_call_id,
        tenant=turn.tenant,
        session_id=turn.session_id,
        turn_id=turn.id,
        message_id=turn.next_message_id,
        position=position,
        tool=request.tool,
        arguments_json=request.arguments_json,
        arguments_hash="",
        tool_class=ToolClass.IRREVERSIBLE,
        action=PolicyAction.DENY,
        state=CallState.AWAITING,
        key=f"{turn.session_id}:{request.tool_call_id}",
    )


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
        ),
        turn=uow.turn,
    )


def _refuse(uow: UnitOfWork, call: Call, outcome: ToolOutcome, told: str) -> None:
    _enter(uow, call)
    _close(uow, call, outcome, told)


def _close(uow: UnitOfWork, call: Call, outcome: ToolOutcome, told: str) -> None:
    result = ToolResult(outcome=outcome, result_json=json.dumps({"error": told}, ensure_ascii=False))
    uow.close_call(call, result)
