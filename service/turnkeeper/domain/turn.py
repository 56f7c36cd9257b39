"""A turn: the work from one user message to its answer, failure or cancellation, and the rule for its next step."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.copies import replace
from turnkeeper.domain.message import FinishReason, Part, Usage
from turnkeeper.domain.session import BelongsToSession, SessionKey
from turnkeeper.domain.tool import Call, CallState, ClientTool
from turnkeeper.durations import jittered


class TurnKey(NamedTuple):
    """Identifies a turn among those of all sessions."""

    session: SessionKey
    turn_id: str


class ToolCaller(NamedTuple):
    """Who calls a tool: the agent of a turn, and who sent the turn's message."""

    agent: str
    principal: str
    """The one whose credential sent the message: the delegate's where there is one."""
    on_behalf_of: str = ""
    """The person for whom a delegate sent it; empty without a delegate."""


class TurnState(StrEnum):
    """Where a turn is. COMPLETED, FAILED and CANCELLED are final until RetryTurn."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    AWAITING_TOOL = "AWAITING_TOOL"
    AWAITING_BUDGET = "AWAITING_BUDGET"
    """Not used yet: a limit that is reached fails the turn."""
    AWAITING_OUTCOME = "AWAITING_OUTCOME"
    BACKING_OFF = "BACKING_OFF"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Returns True in a final state."""
        return self in (TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED)

    @property
    def waits_for_people(self) -> bool:
        """Returns True if the turn has PENDING approvals: only a decision, an expiry or the turn's end changes that."""
        return self in (TurnState.AWAITING_APPROVAL, TurnState.AWAITING_OUTCOME)

    @property
    def moving(self) -> bool:
        """Returns True if the turn changes its state without any caller's help."""
        return self in (TurnState.PENDING, TurnState.RUNNING, TurnState.BACKING_OFF)

    @property
    def awaits_answers(self) -> bool:
        """Returns True if a person or a client must answer before the turn continues."""
        return self.waits_for_people or self is TurnState.AWAITING_TOOL


class StopReason(StrEnum):
    """Why a turn completed: the model finished, or its output limit (LENGTH) cut the answer."""

    FINISHED = "FINISHED"
    LENGTH = "LENGTH"


class CancelReason(StrEnum):
    """Why a turn was cancelled.

    REQUESTED: CancelTurn. INTERRUPTED: a message with if_busy INTERRUPT. SESSION_ENDED: the session was ended or
    deleted. FORKED: it was in the middle at the position where its session was forked. SUPERSEDED: a message with
    if_busy WITHDRAW_PENDING, while it waited for approvals.
    """

    REQUESTED = "REQUESTED"
    INTERRUPTED = "INTERRUPTED"
    SESSION_ENDED = "SESSION_ENDED"
    FORKED = "FORKED"
    SUPERSEDED = "SUPERSEDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingItem:
    """One answer that a turn waits for."""

    approval_id: str
    """Empty for a call that the client runs."""
    tool_call_id: str
    tool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOptions:
    """What the caller set for this turn. A limit above the agent's has no effect."""

    response_schema_json: str = ""
    """The JSON Schema that the answer must match; empty for none."""
    max_iterations: int = 0
    """0: the agent's limit."""
    max_output_tokens: int = 0
    """0: the agent's limit."""
    client_tools: tuple[ClientTool, ...] = ()
    """Tools that the client runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(BelongsToSession):
    """One turn as it is stored."""

    id: str
    tenant: str
    session_id: str
    principal: str
    """The principal who sent the message."""
    agent: str
    agent_version: str
    state: TurnState
    message_id: str
    """The id of the user's message."""
    next_message_id: str
    """The id that the model's next message will have; stored before the first delta of that message."""
    options: TurnOptions
    first_sequence: int
    """The number of the turn's `message_received` event."""
    create_time: datetime
    update_time: datetime
    end_time: datetime | None = None
    """Set in a final state."""
    attempt: int = 0
    """Grows by one at each claim and at each new try of a model call."""
    iterations: int = 0
    """Model calls that returned a whole message."""
    tries: int = 0
    """Failed tries of the current model call."""
    lapses: int = 0
    """Lapsed leases as an older version counts them: it fails a turn at 5. This one counts on the head and sets 0."""
    finish_reason: FinishReason | None = None
    """Of the last whole model message; None before the first."""
    usage: Usage = field(default_factory=Usage)
    stop_reason: StopReason | None = None
    """Set with COMPLETED."""
    error: ErrorDetail | None = None
    """Set with FAILED."""
    answer: tuple[Part, ...] = ()
    """The content of the last message that requests no tools."""
    pending: tuple[PendingItem, ...] = ()
    """The answers that the turn waits for."""
    trace: str = ""
    """The W3C traceparent of the call that sent the message."""
    through: str = ""
    """The delegate that sent the message on behalf of the principal; empty without one."""
    caused_by: tuple[str, ...] = ()
    """Who else caused what it does: the delegate that carried the message, who retried it, who submitted results."""

    @property
    def tool_caller(self) -> ToolCaller:
        """Returns who calls the turn's tools."""
        if self.through:
            return ToolCaller(self.agent, self.through, on_behalf_of=self.principal)
        return ToolCaller(self.agent, self.principal)

    @property
    def causers(self) -> frozenset[str]:
        """Returns all who caused what the turn does; none of them decides an approval that excludes its requester."""
        return frozenset((self.principal, *self.caused_by))

    def also_caused_by(self, *people: str) -> "Turn":
        """Returns the turn with these principals among those who caused what it does. An empty name is none."""
        added = tuple(dict.fromkeys(person for person in people if person and person not in self.causers))
        return replace(self, caused_by=(*self.caused_by, *added)) if added else self

    def next_attempt(self, *, next_message_id: str, at: datetime) -> "Turn":
        """Returns the turn in a new attempt: after a claim, or before a model call is tried again."""
        return replace(
            self,
            state=TurnState.RUNNING,
            attempt=self.attempt + 1,
            next_message_id=next_message_id,
            pending=(),
            update_time=at,
        )

    def ended_as(self, state: TurnState, *, at: datetime) -> "Turn":
        """Returns the turn in a final state. Raises ValueError if it has ended: an end is final until RetryTurn."""
        if self.state.ended:
            raise ValueError(f"a turn that is {self.state} cannot end again")
        return replace(self, state=state, pending=(), update_time=at, end_time=at)


@dataclass(frozen=True, slots=True)
class CallModel:
    """The next step: call the model for the next message."""


@dataclass(frozen=True, slots=True)
class RunTools:
    """The next step: start these calls; all are READY."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class ResolveLost:
    """The next step: resolve these calls, which were started by an owner that is gone."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class AwaitAnswers:
    """The next step: release the turn until a person or the client answers."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class AwaitResults:
    """The next step: wait for the next result of the tools that this owner runs."""


@dataclass(frozen=True, slots=True)
class Complete:
    """The next step: complete the turn; the last message is the answer."""

    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class Fail:
    """The next step: fail the turn."""

    error: ErrorDetail


Step = CallModel | RunTools | ResolveLost | AwaitAnswers | AwaitResults | Complete | Fail


def next_step(
    turn: Turn,
    calls: tuple[Call, ...],
    *,
    running: frozenset[str],
    max_iterations: int,
    parallel_tools: int,
    placed: frozenset[str] = frozenset(),
) -> Step:
    """Returns the turn's next step.

    `calls` are the turn's stored calls; `running` has the ids of those that this owner runs, and of READY ones that
    wait for room. A READY call starts even while another call of the same message waits for a person or for the client.
    Those in `placed` have room already, and start first: no other call waits for what they keep.
    """
    open_calls = tuple(call for call in calls if call.state is not CallState.RETURNED)
    lost = tuple(call for call in open_calls if call.state is CallState.STARTED and call.id not in running)
    if lost:
        return ResolveLost(lost)
    room = parallel_tools - len(running)
    waiting = (call for call in open_calls if call.state is CallState.READY and call.id not in running)
    ready = tuple(sorted(waiting, key=lambda call: (call.id not in placed, call.position)))
    if ready and room > 0:
        return RunTools(ready[:room])
    if running:
        return AwaitResults()
    if open_calls:
        return AwaitAnswers(tuple(sorted(open_calls, key=lambda c: c.position)))
    if turn.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
        return Complete(StopReason.LENGTH if turn.finish_reason is FinishReason.LENGTH else StopReason.FINISHED)
    if turn.iterations >= max_iterations:
        message = (
            f"The turn used its {max_iterations} model calls without a final answer; "
            "raise max_iterations of the agent, or ask for less."
        )
        return Fail(ErrorDetail(code=Code.BUDGET_EXCEEDED, message=message, metadata={"limit": "max_iterations"}))
    return CallModel()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed model call is tried again: the delay doubles with each try, within limits."""

    max_attempts: int = 4
    """Tries of one model call."""
    base: timedelta = timedelta(milliseconds=500)
    """The delay before the second try."""
    most: timedelta = timedelta(seconds=20)
    """The longest delay of this policy; a provider's Retry-After counts instead if it is longer."""
    longest_wait: timedelta = timedelta(minutes=15)
    """A Retry-After longer than this ends the tries."""

    def delay(self, tries: int, *, retry_after: timedelta | None, jitter: float) -> timedelta | None:
        """Returns the delay before the next try; None if no try is left after `tries` failures.

        `jitter` from 0 to 1 spreads the delay by ±25 %.
        """
        if tries >= self.max_attempts or (retry_after is not None and retry_after > self.longest_wait):
            return None
        backoff = jittered(min(self.base * 2.0 ** min(tries - 1, 30), self.most), jitter)
        return max(backoff, retry_after or timedelta())
