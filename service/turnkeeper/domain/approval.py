"""An approval: a question to a person about one tool call. It leaves PENDING exactly once."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from turnkeeper.domain.approvers import ANYBODY, Approvers
from turnkeeper.domain.audit import NO_ORIGIN, Origin
from turnkeeper.domain.newer_version import is_unspecified, newer_version_needed
from turnkeeper.domain.session import BelongsToSession
from turnkeeper.domain.tool import ToolClass
from turnkeeper.errors import ApprovalAlreadyProcessed, ArgumentsHashMismatch, InvalidRequest

NEVER = datetime(9999, 12, 31, tzinfo=UTC)
"""The expire time of an approval whose clock is paused."""


class ApprovalKind(StrEnum):
    """What an approval asks: may this call run (TOOL_CALL), or what became of a lost call (OUTCOME)."""

    TOOL_CALL = "TOOL_CALL"
    OUTCOME = "OUTCOME"


class ApprovalState(StrEnum):
    """Where an approval is. All states but PENDING are final."""

    PENDING = "PENDING"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    WITHDRAWN = "WITHDRAWN"


class ApprovalDecision(StrEnum):
    """What a person can decide. APPROVE and REJECT answer TOOL_CALL; the other three answer OUTCOME."""

    APPROVE = "APPROVE"
    REJECT = "REJECT"
    RETRY = "RETRY"
    MARK_DONE = "MARK_DONE"
    GIVE_UP = "GIVE_UP"


ANSWERS: Mapping[ApprovalKind, Mapping[ApprovalDecision, ApprovalState]] = {
    ApprovalKind.TOOL_CALL: {
        ApprovalDecision.APPROVE: ApprovalState.APPROVED,
        ApprovalDecision.REJECT: ApprovalState.REJECTED,
    },
    ApprovalKind.OUTCOME: {
        ApprovalDecision.RETRY: ApprovalState.APPROVED,
        ApprovalDecision.MARK_DONE: ApprovalState.APPROVED,
        ApprovalDecision.GIVE_UP: ApprovalState.REJECTED,
    },
}
"""The decisions that each kind allows, and the state that each of them leads to."""

_WITHDRAWN = {
    False: "The approval was withdrawn: its turn was cancelled, or its session ended.",
    True: "The approval was withdrawn: the arguments were edited, and replaced_by names the approval of that round.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A decider's answer to an approval, as the request carries it."""

    decision: ApprovalDecision
    by: str
    """The principal who decides."""
    through: str = ""
    """The delegate through which the principal decides; empty without one."""
    arguments_hash: str
    """The hash that the decider saw."""
    reason: str = ""
    """Why, in the decider's words."""
    result_json: str = ""
    """With MARK_DONE alone: JSON text, what the tool would have returned; empty takes the late result."""
    edited_arguments_json: str = ""
    """With APPROVE alone: JSON text, the arguments that run instead."""
    origin: Origin = NO_ORIGIN
    """Who is on record for it."""


def hash_with_late_result(arguments_hash: str, result_json: str) -> str:
    """Returns the hash that a decision must name after a tool's result arrived late.

    It differs from the hash shown before, so that a decider who has not read the result is refused.
    """
    return hashlib.sha256(f"{arguments_hash} {result_json}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval(BelongsToSession):
    """One approval as it is stored."""

    id: str
    tenant: str
    session_id: str
    turn_id: str
    tool_call_id: str
    """The call that the question is about."""
    kind: ApprovalKind
    state: ApprovalState
    round: int
    """From 1; each edit of the arguments starts a new round with a new approval."""
    tool: str
    tool_class: ToolClass
    arguments_json: str
    """Canonical JSON: exactly what runs after APPROVE."""
    arguments_hash: str
    """Hexadecimal: what the decision must name."""
    requester: str
    """The principal whose message began the turn."""
    agent: str
    create_time: datetime
    expire_time: datetime
    """Set, and compared, by the database's clock. NEVER while the session is suspended."""
    decide_time: datetime | None = None
    """When it left PENDING; None before."""
    decided_by: str = ""
    decided_through: str = ""
    """The delegate through which the decider acted; empty without one."""
    reason: str = ""
    sequence: int = 0
    """The number of the event that decided it, 0 before."""
    unknown_tool_call_ids: tuple[str, ...] = ()
    """Calls of the same tool in the session whose outcome is unknown; shown to the decider."""
    late_result_json: str = ""
    """What the tool returned after its time was over, or to an owner that had lost the call."""
    replaced_by: str = ""
    """The approval of the next round, after an edit."""
    decision: ApprovalDecision | None = None
    result_json: str = ""
    """The result that a MARK_DONE decision carried; empty if it took the late result."""
    approvers: Approvers = ANYBODY
    """Who may decide, as the rule states that asks."""
    rule: str = ""
    """What the rule that asks is called; empty if the tool's class asks."""
    rule_text: str = ""
    """The rule in one line; without a rule, why the call is decided by a person."""
    note: str = ""
    """The rule's note for the people who decide. The hash does not cover it."""
    time_left: timedelta | None = None
    """Set while the session is suspended: what remains of the time to decide."""

    def paused(self, *, now: datetime) -> "Approval":
        """Returns the approval with its clock stopped. One that has lapsed by `now` (the database's) stays lapsed."""
        if self.time_left is not None or self.expire_time <= now:
            return self
        return replace(self, time_left=self.expire_time - now, expire_time=NEVER)

    def unpaused(self, *, now: datetime) -> "Approval":
        """Returns the approval with its clock running again from `now`, by the database's clock."""
        if self.time_left is None:
            return self
        return replace(self, time_left=None, expire_time=now + self.time_left)

    def decide(self, answer: Answer, *, at: datetime) -> "Approval":
        """Returns the decided approval, or this one if the same principal repeats the same decision.

        The answer's edited arguments are left out of it. Raises InvalidRequest if this kind does not allow the
        decision, ApprovalAlreadyProcessed if it is not pending, ArgumentsHashMismatch if the decider saw other
        arguments, ServiceUnavailable for a kind or state that only a newer version knows. MARK_DONE without a result
        needs a late result, or it raises InvalidRequest. The caller checks first that the approval has not expired:
        only the database's clock decides that.
        """
        if is_unspecified(self.kind) or is_unspecified(self.state):
            raise newer_version_needed(session_id=self.session_id)
        if answer.decision not in ANSWERS[self.kind]:
            allowed = _alternatives(ANSWERS[self.kind])
            message = f"An approval of kind {self.kind} takes {allowed}."
            raise InvalidRequest(message, fields={"decision": f"must be {allowed}"})
        if self.state is not ApprovalState.PENDING:
            earlier = (self.decision, self.decided_by, self.arguments_hash, self.result_json)
            if earlier == (answer.decision, answer.by, answer.arguments_hash, answer.result_json):
                return self
            raise ApprovalAlreadyProcessed(
                _WITHDRAWN[bool(self.replaced_by)] if self.state is ApprovalState.WITHDRAWN else "",
                session_id=self.session_id,
                turn_id=self.turn_id,
                metadata=self.outcome,
            )
        if answer.arguments_hash != self.arguments_hash:
            raise ArgumentsHashMismatch(
                session_id=self.session_id,
                turn_id=self.turn_id,
                metadata={"approval_id": self.id, "arguments_hash": self.arguments_hash},
            )
        if answer.decision is ApprovalDecision.MARK_DONE and not (answer.result_json or self.late_result_json):
            problem = "is required with MARK_DONE, because the tool has not returned late"
            raise InvalidRequest(f"The request is not valid: result_json {problem}.", fields={"result_json": problem})
        return replace(
            self,
            state=ANSWERS[self.kind][answer.decision],
            decision=answer.decision,
            decided_by=answer.by,
            decided_through=answer.through,
            reason=answer.reason,
            decide_time=at,
            result_json=answer.result_json,
        )

    @property
    def outcome(self) -> dict[str, str]:
        """Returns the error metadata for a decider who comes too late: the state, and who decided."""
        metadata = {"state": self.state.value, "decided_by": self.decided_by, "approval_id": self.id}
        return metadata | ({"replaced_by": self.replaced_by} if self.replaced_by else {})

    def closed(self, state: ApprovalState, *, at: datetime) -> "Approval":
        """Returns the approval without a decision: EXPIRED or WITHDRAWN."""
        return replace(self, state=state, decide_time=at)


def _alternatives(decisions: Iterable[ApprovalDecision]) -> str:
    """Returns "A, B or C"."""
    *first, last = (decision.value for decision in decisions)
    return f"{', '.join(first)} or {last}"
