"""An approval: a question to a person about one tool call. It leaves PENDING exactly once."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from turnkeeper.domain.approval_times import MOST_EXTENDED, warning_before
from turnkeeper.domain.approvers import ANYBODY, Approvers
from turnkeeper.domain.audit import NO_ORIGIN, Origin
from turnkeeper.domain.decider import Decider
from turnkeeper.domain.remembered import Remember, RememberRequest
from turnkeeper.domain.session import BelongsToSession
from turnkeeper.domain.tool import ToolClass
from turnkeeper.errors import InvalidRequest

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A decider's answer to an approval, as the request carries it."""

    decision: ApprovalDecision
    decider: Decider
    arguments_hash: str
    """The hash that the decider saw."""
    reason: str = ""
    """Why, in the decider's words."""
    result_json: str = ""
    """With MARK_DONE alone: JSON text, what the tool would have returned; empty takes the late result."""
    edited_arguments_json: str = ""
    """With APPROVE alone: JSON text, the arguments that run instead."""
    remember: RememberRequest | None = None
    """With APPROVE alone: the decision is to count for later calls, too."""
    origin: Origin = NO_ORIGIN
    """Who is on record for it."""

    @property
    def by(self) -> str:
        """Returns the person who decides."""
        return self.decider.person


HASH_DIGITS: Final = 64
_LATE_DIGITS: Final = 32
"""Digits of the two parts of a hash: together they are fewer than a request may carry."""


def hash_with_late_result(arguments_hash: str, result_json: str) -> str:
    """Returns the hash that a decision must name after a tool's result arrived late.

    It is the hash shown before and that of the result. A decider who has not read the result is refused.
    """
    return f"{arguments_hash[:HASH_DIGITS]}{late_part(result_json)}"


def late_part(result_json: str) -> str:
    """Returns what a late result adds to an approval's hash."""
    return "." + hashlib.sha256(result_json.encode(errors="surrogatepass")).hexdigest()[:_LATE_DIGITS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One person's decision on an approval."""

    person: str
    """Who decided: the principal, or with a delegate the person behind it."""
    authority: str
    """The person whose authority it was: `person`, or who had delegated it."""
    through: str = ""
    """The delegate through which the person decided; empty without one."""
    decision: ApprovalDecision
    arguments_hash: str
    """What the person saw."""
    at: datetime
    reason: str = ""
    sequence: int
    """The number of its `approval_voted` event."""
    remember: Remember | None = None
    """What it asks for later calls; None for nothing."""

    @property
    def people(self) -> frozenset[str]:
        """Returns the people that the vote counts for: each counts once in an approval."""
        return frozenset((self.person, self.authority))


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
    """What the decision must name: `decision_hash` of what is shown here, with that of a late result behind it."""
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
    votes: tuple[Vote, ...] = ()
    """In order, one a person: who takes an approval back has the later vote alone."""
    remembered_from: str = ""
    """The approval whose remembered decision approved this one at its birth; empty if people decide."""
    source: str = ""
    """Who runs the tool; see `ToolSpec.source`."""
    schema_hash: str = ""
    """SHA-256 (hexadecimal) of the tool's schema, and below of its description, as they were when this was asked."""
    description_hash: str = ""
    model_words: str = ""
    """What the model wrote with the call: its first MODEL_WORDS characters."""
    untrusted: bool = False
    """True if the model had read what an untrusted tool returned when it requested the call."""
    changed: tuple[str, ...] = ()
    """What is other than in the round before; empty in the first one."""
    time_left: timedelta | None = None
    """Set while the session is suspended: what remains of the time to decide."""
    causers: tuple[str, ...] = ()
    """Who had caused the call when it was asked about, beside the requester."""
    ttl: timedelta = timedelta()
    """How long it could be decided at first; nothing if an older version requested it."""
    extended: timedelta = timedelta()
    """What was added to that."""
    extension_sequence: int = 0
    """The number of the event of the last extension; 0 before."""
    expiring_time: datetime | None = None
    """When `approval_expiring` is due, by the database's clock; None if it is not."""
    is_expiring: bool = False
    """`approval_expiring` was sent."""

    @property
    def excluded(self) -> frozenset[str]:
        """Returns the people who may not decide it because they caused the call."""
        return frozenset((self.requester, *self.causers)) if self.approvers.exclude_requester else frozenset()

    @property
    def longest_ttl(self) -> timedelta:
        """Returns how long it may be decided in all, with all extensions."""
        return MOST_EXTENDED * self.ttl

    def with_warning(self) -> "Approval":
        """Returns the approval with the time of its warning, which comes once."""
        if self.is_expiring or self.time_left is not None:
            return replace(self, expiring_time=None)
        return replace(self, expiring_time=warning_before(self.expire_time, ttl=self.ttl))

    def extended_to(self, ttl: timedelta) -> "Approval":
        """Returns the approval with so much time to decide in all. Raises InvalidRequest for less than it has, and for
        more than `longest_ttl`."""
        now = self.ttl + self.extended
        if not now <= ttl <= self.longest_ttl:
            allowed = f"must be from {now.total_seconds():g} to {self.longest_ttl.total_seconds():g} s"
            raise InvalidRequest(f"The time to decide can at most be doubled: ttl {allowed}.", fields={"ttl": allowed})
        if ttl == now:
            return self
        more = ttl - now
        if self.time_left is not None:
            return replace(self, extended=self.extended + more, time_left=self.time_left + more)
        return replace(self, extended=self.extended + more, expire_time=self.expire_time + more).with_warning()

    def paused(self, *, now: datetime) -> "Approval":
        """Returns the approval with its clock stopped. One that has lapsed by `now` (the database's) stays lapsed."""
        if self.time_left is not None or self.expire_time <= now:
            return self
        return replace(self, time_left=self.expire_time - now, expire_time=NEVER).with_warning()

    def unpaused(self, *, now: datetime) -> "Approval":
        """Returns the approval with its clock running again from `now`, by the database's clock."""
        if self.time_left is None:
            return self
        return replace(self, time_left=None, expire_time=now + self.time_left).with_warning()

    def vote_of(self, person: str) -> Vote | None:
        """Returns the vote that this person cast, by whatever authority, on the approval as it is shown now."""
        return next((vote for vote in self.counted_votes if vote.person == person), None)

    @property
    def counted_votes(self) -> tuple[Vote, ...]:
        """Returns the votes on what the approval shows now. Those from before a result came late do not count."""
        return tuple(vote for vote in self.votes if vote.arguments_hash == self.arguments_hash)

    @property
    def outcome(self) -> dict[str, str]:
        """Returns the error metadata for a decider who comes too late: the state, and who decided."""
        metadata = {"state": self.state.value, "decided_by": self.decided_by, "approval_id": self.id}
        return metadata | ({"replaced_by": self.replaced_by} if self.replaced_by else {})

    def closed(self, state: ApprovalState, *, at: datetime) -> "Approval":
        """Returns the approval without a decision: EXPIRED or WITHDRAWN."""
        return replace(self, state=state, decide_time=at)
