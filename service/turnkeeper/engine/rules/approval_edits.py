"""An approver's own arguments for a call: checked as a model's are, and put into the call's next round."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Answer, Approval, ApprovalDecision, ApprovalState
from turnkeeper.domain.approval_events import ApprovalWithdrawn
from turnkeeper.domain.policy import Ruling
from turnkeeper.domain.tool import PolicyAction, ToolSpec, canonical_json
from turnkeeper.engine.rules.tool_calls import as_today
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import ApprovalAlreadyProcessed, ToolNotFound, ToolPermissionDenied, ToolValidationError
from turnkeeper.tools.comparison import Steps
from turnkeeper.tools.toolbox import EDIT_STEPS, Toolbox

RuleOn = Callable[[ToolSpec, str], Ruling]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A call's new arguments, which its tool takes and the agent's policy does not deny."""

    arguments_json: str
    """Canonical JSON."""
    spec: ToolSpec
    """The tool as it is today."""
    ruling: Ruling
    """What the policy decides on the edited call. The next round takes its approvers; AUTO: one person."""


def check_edit(
    approval: Approval, arguments_json: str, *, agent: Agent, toolbox: Toolbox, rule_on: RuleOn
) -> Edit | None:
    """Returns the edit that the approver's arguments make, or None if they are the approval's own.

    `rule_on` returns what the policy decides on the tool with these arguments.

    Raises ToolNotFound if the agent no longer has the tool, ToolValidationError if the tool does not take the
    arguments, ToolPermissionDenied if the agent's policy denies the call.
    """
    spec = toolbox.find(agent, approval.tool)
    if spec is None:
        raise ToolNotFound(session_id=approval.session_id, turn_id=approval.turn_id)
    canonical = _checked(approval, spec, arguments_json, toolbox=toolbox)
    ruling = rule_on(spec, canonical)
    if ruling.action is PolicyAction.DENY:
        raise ToolPermissionDenied(session_id=approval.session_id, turn_id=approval.turn_id)
    if canonical == approval.arguments_json:
        return None
    return Edit(arguments_json=canonical, spec=spec, ruling=ruling)


def open_next_round(uow: UnitOfWork, approval: Approval, edit: Edit) -> Approval:
    """Withdraws the approval and requests one for the edited call. Returns the new approval."""
    next_id = uow.new_id()
    withdrawn = replace(approval.closed(ApprovalState.WITHDRAWN, at=uow.at), replaced_by=next_id)
    uow.close_approval(withdrawn, lapsed=False)
    event = ApprovalWithdrawn(approval_id=approval.id, tool_call_id=approval.tool_call_id, replaced_by=next_id)
    uow.append(event, turn=uow.turn)
    call = next(call for call in uow.calls if call.id == approval.tool_call_id)
    # No decision on an edited call is remembered: the model asked for something else.
    edited = replace(as_today(call, edit.spec, edit.ruling), arguments_json=edit.arguments_json, binding="")
    next_round = uow.request_approval(edited, ruling=edit.ruling, approval_id=next_id, changed=("arguments",))
    # The approver read the old approval: a call that became UNKNOWN since must be approved once more before it runs.
    requested = next(requested for requested in uow.calls if requested.id == call.id)
    uow.put_call(replace(requested, shown=approval.unknown_tool_call_ids))
    return next_round


def is_repeat(answer: Answer, approval: Approval, replacement: Approval) -> bool:
    """Returns True if the answer repeats the edit of `approval` that opened the round of `replacement`."""
    vote = replacement.vote_of(answer.by)
    decision = vote.decision if vote is not None else replacement.decision
    voter = vote.person if vote is not None else replacement.decided_by
    return (
        answer.arguments_hash == approval.arguments_hash
        and decision is ApprovalDecision.APPROVE
        and voter == answer.by
        and replacement.arguments_json == _canonical(answer)
    )


def check_unedited(answer: Answer, approval: Approval) -> None:
    """Raises ApprovalAlreadyProcessed if the answer edits an approval that was decided with its own arguments."""
    if answer.edited_arguments_json and _canonical(answer) != approval.arguments_json:
        raise ApprovalAlreadyProcessed(
            session_id=approval.session_id,
            turn_id=approval.turn_id,
            metadata=approval.outcome,
        )


def _checked(approval: Approval, spec: ToolSpec, arguments_json: str, *, toolbox: Toolbox) -> str:
    """Returns the arguments as canonical JSON. Raises ToolValidationError if the tool does not take them."""
    try:
        return toolbox.check(spec, arguments_json, steps=Steps(EDIT_STEPS))
    except ToolValidationError as error:
        raise ToolValidationError(
            f"The edited arguments are not valid: {error.message}",
            session_id=approval.session_id,
            turn_id=approval.turn_id,
            fields={"edited_arguments_json": error.message},
        ) from error


def _canonical(answer: Answer) -> str:
    """Returns the edited arguments as canonical JSON, or nothing if they are not JSON."""
    try:
        return canonical_json(answer.edited_arguments_json)
    except ValueError:
        return ""
