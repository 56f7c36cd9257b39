"""An approval: a question about one tool call, which leaves PENDING once."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from turnkeeper.domain.tool import ToolClass
from turnkeeper.errors import ApprovalAlreadyProcessed, ArgumentsHashMismatch, InvalidRequest

NEVER = datetime(9999, 12, 31, tzinfo=UTC)


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
"""What each kind can be answered with, and what the approval then is."""

_WITHDRAWN = {
    False: "The approval was withdrawn: its turn was cancelled, or its session ended.",
    True: "The approval was withdrawn: the arguments were edited, and replaced_by names the approval of that round.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a decider says. `result_json` comes with MARK_DONE alone: JSON text, what the tool would have returned.

    `edited_arguments_json` comes with APPROVE alone: JSON text, what is to run instead.
    """

    decision: ApprovalDecision
    by: str
    arguments_hash: str
    reason: str = ""
    result_json: str = ""
    edited_arguments_json: str = ""


def hash_with_late_result(arguments_hash: str, result_json: str) -> str:
    """What a decision must name once a lost tool's result came after all: who has not read it is refused."""
    return hashlib.sha256(f"{arguments_hash} {result_json}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One approval as it is stored. `expire_time` was set, and is compared, by the database's clock.

    `time_left`: set while its session is suspended; its clock stands still, and `expire_time` is NEVER.

    `sequence` is the number of the event that decided it, 0 before. `unknown_tool_call_ids`: calls of the same tool in
    the session whose outcome is unknown. `late_result_json`: what a lost owner's tool returned after all.
    `replaced_by`: the approval of the next round. `result_json` is what MARK_DONE said.
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
    decision: ApprovalDecision | None = None
    result_json: str = ""
    time_left: timedelta | None = None

    def paused(self, *, now: datetime) -> "Approval":
        """Its clock stands still. `now` is the database's; one that had lapsed by then stays lapsed."""
        if self.time_left is not None or self.expire_time <= now:
            return self
        return replace(self, time_left=self.expire_time - now, expire_time=NEVER)

    def unpaused(self, *, now: datetime) -> "Approval":
        """Its clock goes on, from `now` by the database's."""
        if self.time_left is None:
            return self
        return replace(self, time_left=None, expire_time=now + self.time_left)

    def decide(
        self,
        decision: ApprovalDecision,
        *,
        by: str,
        arguments_hash: str,
        reason: str,
        at: datetime,
        result_json: str = "",
    ) -> "Approval":
        """The decided approval, or this one when the same principal repeats the same decision.

        Raises InvalidRequest for a decision of the other kind, ApprovalAlreadyProcessed when it is not pending,
        ArgumentsHashMismatch when the decider saw other arguments. Whether it has lapsed is the caller's to ask
        first: only the database's clock tells.
        """
        if decision not in ANSWERS[self.kind]:
            allowed = _alternatives(ANSWERS[self.kind])
            told = f"An approval of kind {self.kind} takes {allowed}."
            raise InvalidRequest(told, fields={"decision": f"must be {allowed}"})
        if self.state is not ApprovalState.PENDING:
            made = (self.decision, self.decided_by, self.arguments_hash, self.result_json)
            if made == (decision, by, arguments_hash, result_json):
                return self
            raise ApprovalAlreadyProcessed(
                _WITHDRAWN[bool(self.replaced_by)] if self.state is ApprovalState.WITHDRAWN else "",
                session_id=self.session_id,
                turn_id=self.turn_id,
                metadata=self.outcome,
            )
        if arguments_hash != self.arguments_hash:
            raise ArgumentsHashMismatch(
                session_id=self.session_id,
                turn_id=self.turn_id,
                metadata={"approval_id": self.id, "arguments_hash": self.arguments_hash},
            )
        said = replace(self, decision=decision, decided_by=by, reason=reason, decide_time=at, result_json=result_json)
        return replace(said, state=ANSWERS[self.kind][decision])

    @property
    def outcome(self) -> dict[str, str]:
        """Who won, for those who come too late."""
        told = {"state": self.state.value, "decided_by": self.decided_by, "approval_id": self.id}
        return told | ({"replaced_by": self.replaced_by} if self.replaced_by else {})

    def closed(self, state: ApprovalState, *, at: datetime) -> "Approval":
        """Expired or withdrawn."""
        return replace(self, state=state, decide_time=at)


def _alternatives(decisions: Iterable[ApprovalDecision]) -> str:
    *first, last = (decision.value for decision in decisions)
    return f"{', '.join(first)} or {last}"
