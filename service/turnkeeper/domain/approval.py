"""An approval: a question about one tool call, which leaves PENDING once."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from turnkeeper.domain.tool import ToolClass
from turnkeeper.errors import ApprovalAlreadyProcessed, ArgumentsHashMismatch, InvalidRequest


class ApprovalKind(StrEnum):
    TOOL_CALL = "TOOL_CALL"
    OUTCOME = "OUTCOME"


class ApprovalState(StrEnum):
    PENDING = "PENDING"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    WITHDRAWN = "WITHDRAWN"


class ApprovalDecision(StrEnum):
    APPROVE = "APPROVE"
    REJECT = "REJECT"
    RETRY = "RETRY"
    MARK_DONE = "MARK_DONE"
    GIVE_UP = "GIVE_UP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One approval as it is stored. `expire_time` was set, and is compared, by the database's clock.

    `sequence` is the number of the event that decided it, 0 before. `unknown_tool_call_ids`: calls of the same tool in
    the session whose outcome is unknown. `late_result_json`: what a lost owner's tool returned after all.
    `replaced_by`: the approval of the next round.
    """

    id: str
    tenant: str
    session_id: str
    turn_id: str
    tool_call_id: str
    kind: ApprovalKind
    state: ApprovalState
    round: int
    tool: str
    tool_class: ToolClass
    arguments_json: str
    arguments_hash: str
    requester: str
    agent: str
    create_time: datetime
    expire_time: datetime
    decide_time: datetime | None = None
    decided_by: str = ""
    reason: str = ""
    sequence: int = 0
    unknown_tool_call_ids: tuple[str, ...] = ()
    late_result_json: str = ""
    replaced_by: str = ""

    def decide(
        self, decision: ApprovalDecision, *, by: str, arguments_hash: str, reason: str, at: datetime
    ) -> "Approval":
        """The decided approval, or this one when the same principal repeats the same decision.

        Raises ApprovalAlreadyProcessed when it is not pending, ArgumentsHashMismatch when the decider saw other
        arguments. Whether it has lapsed is the caller's to ask first: only the database's clock tells.
        """
        if decision not in (ApprovalDecision.APPROVE, ApprovalDecision.REJECT):
            told = f"An approval of kind {self.kind} takes APPROVE or REJECT."
            raise InvalidRequest(told, fields={"decision": "must be APPROVE or REJECT"})
        decided = ApprovalState.APPROVED if decision is ApprovalDecision.APPROVE else ApprovalState.REJECTED
        if self.state is not ApprovalState.PENDING:
            if self.state is decided and self.decided_by == by and self.arguments_hash == arguments_hash:
                return self
            withdrawn = self.state is ApprovalState.WITHDRAWN
            raise ApprovalAlreadyProcessed(
                "The approval was withdrawn: its turn was cancelled, or its session ended." if withdrawn else "",
                session_id=self.session_id,
                turn_id=self.turn_id,
                metadata={"state": self.state.value, "decided_by": self.decided_by, "approval_id": self.id},
            )
        if arguments_hash != self.arguments_hash:
            raise ArgumentsHashMismatch(
                session_id=self.session_id,
                turn_id=self.turn_id,
                metadata={"approval_id": self.id, "arguments_hash": self.arguments_hash},
            )
        return replace(self, state=decided, decided_by=by, reason=reason, decide_time=at)

    def closed(self, state: ApprovalState, *, at: datetime) -> "Approval":
        """Expired or withdrawn."""
        return replace(self, state=state, decide_time=at)
