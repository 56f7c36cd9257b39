"""A turn: one user message to its final answer or failure, and what it must do next."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.domain.message import FinishReason, Part, Usage
from turnkeeper.domain.tool import Call, CallState, ClientTool


class TurnState(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    AWAITING_TOOL = "AWAITING_TOOL"
    AWAITING_BUDGET = "AWAITING_BUDGET"
    AWAITING_OUTCOME = "AWAITING_OUTCOME"
    BACKING_OFF = "BACKING_OFF"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        return self in (TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED)

    @property
    def waits_for_people(self) -> bool:
        """Only a decision, its expiry or an end moves it on; it has PENDING approvals."""
        return self in (TurnState.AWAITING_APPROVAL, TurnState.AWAITING_OUTCOME)

    @property
    def moving(self) -> bool:
        """It will change without anybody's help."""
        return self in (TurnState.PENDING, TurnState.RUNNING, TurnState.BACKING_OFF)

    @property
    def awaits_answers(self) -> bool:
        """People or clients must answer before it goes on."""
        return self.waits_for_people or self is TurnState.AWAITING_TOOL


class StopReason(StrEnum):
    FINISHED = "FINISHED"
    LENGTH = "LENGTH"


class CancelReason(StrEnum):
    REQUESTED = "REQUESTED"
    INTERRUPTED = "INTERRUPTED"
    SESSION_ENDED = "SESSION_ENDED"
    FORKED = "FORKED"


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingItem:
    """What a turn waits for. `approval_id` is empty for a call that the client runs."""

    approval_id: str
    tool_call_id: str
    tool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOptions:
    """What the caller asked of this turn. A limit of 0 is the agent's; one above the agent's does not count."""

    response_schema_json: str = ""
    max_iterations: int = 0
    max_output_tokens: int = 0
    client_tools: tuple[ClientTool, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn as it is stored.

    `attempt` grows at each claim and each model retry. `next_message_id` is the id that the model's next message
    will have; it is stored before the message's first delta. `tries` counts the failed tries of the model call that
    is due; `lapses` the owners in a row that were lost without a step. `trace` is the W3C
    traceparent of the call that brought it. `finish_reason` is that of the last
    whole model message, None before the first.
    """

    id: str
    tenant: str
    session_id: str
    principal: str
    agent: str
    agent_version: str
    state: TurnState
    message_id: str
    next_message_id: str
    options: TurnOptions
    first_sequence: int
    create_time: datetime
    update_time: datetime
    end_time: datetime | None = None
    attempt: int = 0
    iterations: int = 0
    tries: int = 0
    lapses: int = 0
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    stop_reason: StopReason | None = None
    error: ErrorDetail | None = None
    answer: tuple[Part, ...] = ()
    pending: tuple[PendingItem, ...] = ()
    trace: str = ""

    def taken_up(self, *, next_message_id: str, at: datetime) -> "Turn":
        """A new attempt: after a claim, or before a model call is tried again."""
        return replace(
            self,
            state=TurnState.RUNNING,
            attempt=self.attempt + 1,
            next_message_id=next_message_id,
            pending=(),
            update_time=at,
        )

    def ended_as(self, state: TurnState, *, at: datetime) -> "Turn":
        """The turn's last state. Raises ValueError when it has ended before: an end is final until RetryTurn."""
        if self.state.ended:
            raise ValueError(f"a turn that is {self.state} cannot end again")
        return replace(self, state=state, pending=(), update_time=at, end_time=at)


@dataclass(frozen=True, slots=True)
class CallModel:
    """Ask the model for the next message."""


@dataclass(frozen=True, slots=True)
class RunTools:
    """Start these calls; all are READY."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class ResolveLost:
    """These calls were started by an owner that is gone; nobody waits for their results."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class AwaitAnswers:
    """Let go of the turn: only people, or the client, can move it on."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class AwaitResults:
    """Tools of this owner are running; wait for the next result."""


@dataclass(frozen=True, slots=True)
class Complete:
    """The last message is the answer."""

    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class Fail:
    """The turn cannot go on."""

    error: ErrorDetail


Step = CallModel | RunTools | ResolveLost | AwaitAnswers | AwaitResults | Complete | Fail


def next_step(
    turn: Turn, calls: tuple[Call, ...], *, running: frozenset[str], max_iterations: int, parallel_tools: int
) -> Step:
    """What the turn must do next, decided on values alone.

    `calls` are the turn's ledger entries; `running` names those whose tools this owner has in hand.
    A call that is ready starts at once, also while a sibling waits for a person or for the client.
    """
    open_calls = tuple(call for call in calls if call.state is not CallState.RETURNED)
    lost = tuple(c for c in open_calls if c.state is CallState.STARTED and c.id not in running)
    if lost:
        return ResolveLost(lost)
    room = parallel_tools - len(running)
    ready = tuple(sorted((c for c in open_calls if c.state is CallState.READY), key=lambda c: c.position))
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
    """When a failed model call is tried again: `max_attempts` tries, the delay doubling from `base` up to `most`.

    A provider's Retry-After counts when it is longer; one longer than `longest_wait` ends the tries.
    """

    max_attempts: int = 4
    base: timedelta = timedelta(milliseconds=500)
    most: timedelta = timedelta(seconds=20)
    longest_wait: timedelta = timedelta(minutes=15)

    def delay(self, tries: int, *, retry_after: timedelta | None, jitter: float) -> timedelta | None:
        """Before the next try, or None when none is left. `tries` have failed; `jitter` in 0..1 spreads by ±25 %."""
        if tries >= self.max_attempts or (retry_after is not None and retry_after > self.longest_wait):
            return None
        backoff = min(self.base * 2.0 ** min(tries - 1, 30), self.most) * (0.75 + jitter / 2)
        return max(backoff, retry_after or timedelta())
