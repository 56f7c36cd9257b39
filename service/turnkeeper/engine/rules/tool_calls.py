"""Decisions on the tool calls that a model requests: before any of them runs, and on a client's result."""

import json
from dataclasses import replace
from typing import Final

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.policy import Ruling, with_ruling
from turnkeeper.domain.session import Session
from turnkeeper.domain.tool import (
    CLIENT,
    MODEL_WORDS,
    Call,
    CallState,
    PolicyAction,
    ToolClass,
    ToolOutcome,
    ToolResult,
    ToolSpec,
    decision_hash,
)
from turnkeeper.domain.tool_events import ToolCalled
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.rules.remembered import approve_by_memory, binding_of
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import ToolValidationError
from turnkeeper.policy.policies import CallFacts, Policies
from turnkeeper.tools.comparison import Steps
from turnkeeper.tools.toolbox import CheckedRequest, Toolbox

DECISION_STEPS = 5_000
"""Steps of a comparison inside a decision, at most: about 20 ms. It is rare: the tool changed while the call waited."""
MOST_PENDING = 32
"""Approvals of one turn that can be pending at the same time. An approval of an outcome is requested beyond it."""
TOO_MANY_PENDING = (
    f"{MOST_PENDING} calls of this turn wait for a person, and no more can; call the tool again after their decisions."
)
_PARTS: Final = (
    ("source", "source"),
    ("schema", "schema_hash"),
    ("description", "description_hash"),
    ("class", "tool_class"),
)
"""What can change about a call's tool: its name in events, and the call's field."""
DENIED = Ruling(action=PolicyAction.DENY)
"""What becomes of a call that no policy is read for: its tool does not exist, or does not take its arguments."""
STARTED_BEFORE = "An earlier start of it may have taken effect."
MOST_SHOWN = 64
"""Characters of a name that a model made up, in the result that it receives: a tool's own name has no more."""


def propose(uow: UnitOfWork, checked: CheckedRequest, position: int, *, words: str, untrusted: bool) -> None:
    """Stores the call that the model requests, at `position` in its message, as the policy has decided on it.

    The call is then READY, or waits for a person or for the client. If there is no such tool, if it does not take the
    arguments, or if the policy denies it, the call is closed by a result that gives the reason to the model. So it is
    if MOST_PENDING calls of the turn wait for a person. `words`: what the model wrote with it. `untrusted`: the model
    had read what an untrusted tool returned.
    """
    spec = checked.spec
    if spec is None:
        call = _call(uow, checked, position, ruling=DENIED)
        _refuse(uow, call, ToolOutcome.NOT_FOUND, f"There is no tool named {call.tool[:MOST_SHOWN]}.", DENIED)
    elif checked.problem:
        call = _call(uow, checked, position, ruling=DENIED)
        _refuse(uow, call, ToolOutcome.INVALID_ARGUMENTS, checked.problem, DENIED)
    else:
        ruling = _ruling(checked, spec, uow)
        call = _call(uow, checked, position, ruling=ruling)
        call = as_today(replace(call, model_words=words[:MODEL_WORDS], untrusted=untrusted), spec, ruling)
        _propose(uow, replace(call, arguments_hash=decision_hash(call)), spec, ruling)


def _propose(uow: UnitOfWork, call: Call, spec: ToolSpec, ruling: Ruling) -> None:
    """Stores a call that fits its tool as the ruling has it."""
    match ruling.action:
        case _ if call.source == CLIENT:
            _enter(uow, call, ruling)
            uow.request_client_tool(call)
        case PolicyAction.AUTO | PolicyAction.NOTIFY:
            _enter(uow, call, ruling)
        case PolicyAction.APPROVE if len(uow.approvals) >= MOST_PENDING:
            _refuse(uow, call, ToolOutcome.DENIED, TOO_MANY_PENDING, ruling)
        case PolicyAction.APPROVE:
            call = replace(call, binding=binding_of(spec, ruling, causers=uow.turn.causers))
            _enter(uow, call, ruling)
            approve_by_memory(uow, uow.request_approval(call, ruling=ruling))
        case PolicyAction.DENY:
            _refuse(uow, call, ToolOutcome.DENIED, "The agent's policy denies this call.", ruling)


def as_today(call: Call, spec: ToolSpec, ruling: Ruling) -> Call:
    """Returns the call with its tool as it is today, and with what the policy decides today."""
    return replace(
        with_ruling(call, ruling),
        source=spec.source,
        schema_hash=spec.schema_hash,
        description_hash=spec.description_hash,
        tool_class=spec.tool_class,
        trusted_output=spec.trusted_output,
    )


def facts_of(turn: Turn, session: Session, spec: ToolSpec, *, arguments_json: str, untrusted: bool) -> CallFacts:
    """Returns what a policy knows of a call of the turn."""
    return CallFacts(
        spec=spec,
        arguments_json=arguments_json,
        tenant=turn.tenant,
        principal=turn.principal,
        labels=session.labels,
        untrusted=untrusted,
    )


def ruled(
    checked: CheckedRequest, *, policies: Policies, agent: Agent, turn: Turn, session: Session, untrusted: bool
) -> CheckedRequest:
    """Returns the request with what the policy decides on it. Nothing decides on one that does not fit its tool."""
    spec = checked.spec
    if spec is None or checked.problem or spec.source == CLIENT:
        return checked
    facts = facts_of(turn, session, spec, arguments_json=checked.arguments_json, untrusted=untrusted)
    return replace(checked, ruling=policies.ruling_on(agent, facts))


def changes_of(uow: UnitOfWork, call: Call, spec: ToolSpec, ruling: Ruling) -> tuple[str, ...]:
    """Returns what about a READY call is other than it was proposed or approved, so that it must not start (I14).

    `ruling` is what the policy decides today. A call on which no person has decided may start under another rule, as
    long as it lets the call run. A person's decision is void under another rule, whatever that rule allows.
    """
    today = as_today(call, spec, ruling)
    if not call.schema_hash and not call.round and ruling.runs and spec.tool_class.may_start_again:
        call = today  # of an older version, which kept none of this: no person was asked, and none is
        call = replace(call, arguments_hash=decision_hash(call))
    changed = [name for name, field in _PARTS if getattr(call, field) != getattr(today, field)]
    by_rule = (call.rule, call.rule_text) != (today.rule, today.rule_text)
    if (by_rule and (call.round or not ruling.runs)) or (not call.round and not ruling.runs):
        changed.append("rule")
    elif not changed and not by_rule and decision_hash(today) != call.arguments_hash:
        changed.append("arguments")
    if not shows_all_unknown(uow, call):
        changed.append("unknown_calls")
    return tuple(changed)


def request_new_approval(
    uow: UnitOfWork, call: Call, spec: ToolSpec, ruling: Ruling, *, changed: tuple[str, ...], toolbox: Toolbox
) -> None:
    """Opens a new round for a call of which `changed` is other than it was when it was proposed or approved.

    Closes the call instead if its tool no longer takes the arguments, or if MOST_PENDING calls wait for a person.
    """
    try:
        canonical = toolbox.check(spec, call.arguments_json, steps=Steps(DECISION_STEPS))
    except ToolValidationError as error:
        _close(uow, call, ToolOutcome.INVALID_ARGUMENTS, error.message)
        return
    if len(uow.approvals) >= MOST_PENDING:
        _close(uow, call, ToolOutcome.DENIED, TOO_MANY_PENDING)
        return
    binding = binding_of(spec, ruling, causers=uow.turn.causers)
    today = replace(as_today(call, spec, ruling), arguments_json=canonical, binding=binding)
    uow.request_approval(today, ruling=ruling, changed=changed)


def refuse_start(uow: UnitOfWork, call: Call, ruling: Ruling | None, *, is_listed: bool = True) -> None:
    """Closes a READY call that may not start at all: its tool is gone if `ruling` is None, or the policy denies it.

    `is_listed`: all sources have a list. Otherwise the tool may be one of a server that has not answered yet.
    """
    if ruling is None and not is_listed:
        _close(uow, call, ToolOutcome.FAILED, f"The server of {call.tool} cannot be reached now; try again later.")
    elif ruling is None:
        _close(uow, call, ToolOutcome.NOT_FOUND, f"There is no tool named {call.tool} any more.")
    else:
        _close(uow, call, ToolOutcome.DENIED, "The agent's policy denies this call now.")


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


def _ruling(checked: CheckedRequest, spec: ToolSpec, uow: UnitOfWork) -> Ruling:
    """Returns the policy's ruling; AUTO for a client's tool.

    A tool of which the session holds an UNKNOWN call asks, whatever the policy lets through.
    """
    if spec.source == CLIENT:
        return Ruling(action=PolicyAction.AUTO)
    ruling = checked.ruling or DENIED
    return ruling.asking() if uow.session.unknown_calls(spec.name) else ruling


def _call(uow: UnitOfWork, checked: CheckedRequest, position: int, *, ruling: Ruling) -> Call:
    """Returns the requested call: READY if its tool is the service's and may run. An unknown tool is IRREVERSIBLE."""
    turn, request, spec = uow.turn, checked.request, checked.spec
    runs = ruling.runs and spec is not None and spec.source != CLIENT
    return Call(
        id=request.tool_call_id,
        tenant=turn.tenant,
        session_id=turn.session_id,
        turn_id=turn.id,
        message_id=turn.next_message_id,
        position=position,
        tool=request.tool,
        arguments_json=checked.arguments_json,
        arguments_hash="",
        tool_class=ToolClass.IRREVERSIBLE if spec is None else spec.tool_class,
        action=ruling.action,
        state=CallState.READY if runs else CallState.AWAITING,
        key=f"{turn.session_id}:{request.tool_call_id}",
        source="" if spec is None else spec.source,
    )


def _enter(uow: UnitOfWork, call: Call, ruling: Ruling) -> None:
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
            rule=ruling.rule,
            policy_error=ruling.error,
            shadows=ruling.shadows,
        ),
        turn=uow.turn,
    )


def _refuse(uow: UnitOfWork, call: Call, outcome: ToolOutcome, reason: str, ruling: Ruling) -> None:
    _enter(uow, call, ruling)
    _close(uow, call, outcome, reason)


def _close(uow: UnitOfWork, call: Call, outcome: ToolOutcome, reason: str) -> None:
    """Closes a call that does not start; one that had started before may have taken effect, and the model reads so."""
    if call.started and call.tool_class is not ToolClass.READ_ONLY:
        reason = f"{reason} {STARTED_BEFORE}"
    result = ToolResult(outcome=outcome, result_json=json.dumps({"error": reason}, ensure_ascii=False))
    uow.close_call(call, result)
