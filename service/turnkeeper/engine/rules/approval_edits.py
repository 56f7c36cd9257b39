"""An approver's own arguments: checked and judged as a model's are, then the next round, decided by its author."""

from dataclasses import dataclass, replace

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.approval import Answer, Approval, ApprovalDecision, ApprovalState
from turnkeeper.domain.event import ApprovalWithdrawn
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec, approval_hash, canonical_json
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import ApprovalAlreadyProcessed, ToolNotFound, ToolPermissionDenied, ToolValidationError
from turnkeeper.tools.toolbox import Toolbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What is to run instead. `arguments_json` is canonical and fits the tool; the policy does not deny it."""

    arguments_json: str
    arguments_hash: str
    tool_class: ToolClass
    agent: Agent


def check_edit(approval: Approval, arguments_json: str, *, agent: Agent, toolbox: Toolbox) -> Edit | None:
    """None when it says what the approval says already.

    Raises ToolNotFound, ToolValidationError, ToolPermissionDenied.
    """
    spec = toolbox.find(agent, approval.tool)
    if spec is None:
        raise ToolNotFound(session_id=approval.session_id, turn_id=approval.turn_id)
    canonical = _checked(approval, spec, arguments_json, toolbox=toolbox)
    if agent.rule_for(spec).action is PolicyAction.DENY:
        raise ToolPermissionDenied(session_id=approval.session_id, turn_id=approval.turn_id)
    if canonical == approval.arguments_json:
        return None
    fresh = approval_hash(spec, arguments_json=canonical, policy_version=agent.version)
    return Edit(arguments_json=canonical, arguments_hash=fresh, tool_class=spec.tool_class, agent=agent)


def open_next_round(uow: UnitOfWork, approval: Approval, edit: Edit) -> Approval:
    """The old question is withdrawn; the next round asks about the edited call."""
    next_id = uow.new_id()
    withdrawn = replace(approval.closed(ApprovalState.WITHDRAWN, at=uow.at), replaced_by=next_id)
    uow.close_approval(withdrawn, lapsed=False)
    said = ApprovalWithdrawn(approval_id=approval.id, tool_call_id=approval.tool_call_id, replaced_by=next_id)
    uow.append(said, turn=uow.turn)
    call = next(call for call in uow.calls if call.id == approval.tool_call_id)
    edited = replace(
        call, arguments_json=edit.arguments_json, arguments_hash=edit.arguments_hash, tool_class=edit.tool_class
    )
    asked = uow.request_approval(edited, agent=edit.agent, approval_id=next_id)
    # The author saw the old question: what became unknown since then must be asked about before it runs.
    seen = next(each for each in uow.calls if each.id == call.id)
    uow.put_call(replace(seen, shown=approval.unknown_tool_call_ids))
    return asked


def is_repeat(said: Answer, approval: Approval, replacement: Approval) -> bool:
    """The same principal sends the edit again that `replacement` came of."""
    return (
        said.arguments_hash == approval.arguments_hash
        and replacement.decision is ApprovalDecision.APPROVE
        and replacement.decided_by == said.by
        and replacement.arguments_json == _canonical(said)
    )


def check_unedited(said: Answer, approval: Approval) -> None:
    """An edit of what was decided as it stood comes too late. Raises ApprovalAlreadyProcessed."""
    if said.edited_arguments_json and _canonical(said) != approval.arguments_json:
        raise ApprovalAlreadyProcessed(
            session_id=approval.session_id,
            turn_id=approval.turn_id,
            metadata=approval.outcome,
        )


def _checked(approval: Approval, spec: ToolSpec, arguments_json: str, *, toolbox: Toolbox) -> str:
    try:
        return toolbox.check(spec, arguments_json)
    except ToolValidationError as error:
        raise ToolValidationError(
            f"The edited arguments are not valid: {error.message}",
            session_id=approval.session_id,
            turn_id=approval.turn_id,
            fields={"edited_arguments_json": error.message},
        ) from error


def _canonical(said: Answer) -> str:
    try:
        return canonical_json(said.edited_arguments_json)
    except ValueError:
        return ""
