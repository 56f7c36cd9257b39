"""What an owner decides on a draft, from what it did: begun, answered, failed, returned. No I/O."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.event import (
    AttemptFailed,
    AttemptOutcome,
    AttemptSuperseded,
    MessageCompleted,
    TurnCompleted,
    TurnStarted,
)
from turnkeeper.domain.message import FinishReason, Part, ToolRequest, Usage
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import StopReason, Turn, TurnState
from turnkeeper.engine.rules.tool_calls import propose
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.model.contract import ModelAnswer
from turnkeeper.store.changeset import LeaseChange
from turnkeeper.tools.toolbox import Finished, Toolbox

HELD_DELAY = timedelta(seconds=2)
"""A shorter wait for the next try keeps the lease; a longer one lets go of it and is a wake-up."""
MAX_LAPSES = 5
"""Owners in a row that were lost without a step; then the turn fails (it may be what kills them)."""


def lapse_limit_error(turn: Turn, *, lapses: int) -> ErrorDetail | None:
    """Why the turn must not be tried again: too many owners in a row were lost. `lapses`: since its last step."""
    lost = turn.lapses + lapses
    if lost < MAX_LAPSES:
        return None
    told = f"{lost} attempts in a row to run this turn were lost with their server; ask its operator why."
    return ErrorDetail(code=Code.AGENT_CONFIG_ERROR, message=told)


def begin_attempt(uow: UnitOfWork, *, lapses: int) -> None:
    """A new attempt after a claim. `lapses`: owners that were lost since the last step; their deltas do not count."""
    turn = uow.turn
    first, taken_over = turn.attempt == 0, lapses > 0
    message_id = uow.new_id() if taken_over else turn.next_message_id
    begun = replace(turn.taken_up(next_message_id=message_id, at=uow.at), lapses=turn.lapses + lapses)
    uow.put_turn(begun)
    if first:
        uow.append(TurnStarted(message_id=message_id), turn=begun)
    elif taken_over:
        uow.append(AttemptSuperseded(superseded_attempt=turn.attempt, message_id=message_id), turn=begun)


def release_for_retry(uow: UnitOfWork) -> None:
    """The run broke down on a defect: another try later, longer each time, until the turn is worn out."""
    turn = replace(uow.turn, lapses=uow.turn.lapses + 1, update_time=uow.at)
    uow.put_turn(turn)
    error = lapse_limit_error(turn, lapses=0)
    if error is not None:
        uow.fail_turn(error)
        uow.activate_next_turn()
        return
    uow.change_head(lease=LeaseChange.RELEASE, wake=timedelta(seconds=2 ** (turn.lapses - 1)))


def record_answer(
    uow: UnitOfWork, answer: ModelAnswer, requests: Sequence[ToolRequest], *, agent: Agent, toolbox: Toolbox
) -> None:
    """The whole message, and what becomes of the tool calls it asks for."""
    turn = uow.turn
    parts = (Part(text=answer.text),) if answer.text else ()
    said = MessageCompleted(
        message_id=turn.next_message_id,
        content=parts,
        tool_requests=tuple(requests),
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        model=answer.model,
    )
    uow.append(said, turn=turn)
    turn = replace(
        turn,
        iterations=turn.iterations + 1,
        tries=0,
        lapses=0,
        usage=turn.usage + answer.usage,
        finish_reason=answer.finish_reason,
        answer=() if requests else parts,
        update_time=uow.at,
    )
    uow.put_turn(turn)
    for position, request in enumerate(requests):
        propose(uow, request, position, agent=agent, toolbox=toolbox)
    if requests:
        uow.put_turn(replace(uow.turn, next_message_id=uow.new_id()))


def record_partial_answer(uow: UnitOfWork, text: str, *, model: str) -> None:
    """Cancelled in mid-message: what was said is kept, closed as INTERRUPTED."""
    if not text or uow.snapshot.head.cancel.turn_id != uow.turn.id:
        return
    said = MessageCompleted(
        message_id=uow.turn.next_message_id,
        content=(Part(text=text),),
        tool_requests=(),
        finish_reason=FinishReason.INTERRUPTED,
        usage=Usage(),
        model=model,
    )
    uow.append(said, turn=uow.turn)


def record_model_failure(uow: UnitOfWork, error: ErrorDetail, *, tries: int, delay: timedelta | None) -> None:
    """A model call failed for the `tries`-th time; `delay` until the next try, None when there is none."""
    failed = uow.turn
    outcome = AttemptOutcome.EXHAUSTED if delay is None else AttemptOutcome.RETRYING
    uow.append(AttemptFailed(error=error, outcome=outcome, retry_delay=delay), turn=failed)
    if delay is None:
        uow.fail_turn(error)
        return
    turn = replace(failed.taken_up(next_message_id=uow.new_id(), at=uow.at), tries=tries, lapses=0)
    if delay > HELD_DELAY and uow.snapshot.head.cancel.turn_id != turn.id:
        turn = replace(turn, state=TurnState.BACKING_OFF)
        uow.change_head(lease=LeaseChange.RELEASE, wake=delay)
    uow.put_turn(turn)


def record_tool_results(uow: UnitOfWork, results: Sequence[Finished]) -> None:
    """What the tools gave."""
    by_id = {call.id: call for call in uow.calls}
    for finished in results:
        call = by_id[finished.call_id]
        uow.close_call(call, finished.result, duration=finished.duration)
    uow.put_turn(replace(uow.turn, lapses=0, update_time=uow.at))


def resolve_lost_calls(uow: UnitOfWork, calls: Sequence[Call], *, agent: Agent) -> None:
    """Their owner is gone. What may be repeated starts again under its key; about the rest a person is asked (I5)."""
    for call in calls:
        if call.tool_class.may_start_again:
            uow.put_call(call.ready_again())
    lost = [uow.mark_unknown(call) for call in calls if not call.tool_class.may_start_again]
    for call in lost:
        uow.request_approval(call, agent=agent)


def complete(uow: UnitOfWork, stop_reason: StopReason) -> None:
    """The last message is the answer."""
    turn = replace(uow.turn.ended_as(TurnState.COMPLETED, at=uow.at), stop_reason=stop_reason)
    uow.put_turn(turn)
    uow.append(TurnCompleted(stop_reason=stop_reason, usage=turn.usage, message_id=turn.next_message_id), turn=turn)


def hand_over(uow: UnitOfWork, *, cut: bool) -> None:
    """Anybody may claim the turn at once, or, suspended, once it is resumed.

    `cut`: a message was given up, and its deltas do not count.
    """
    if cut:
        turn = replace(uow.turn, next_message_id=uow.new_id(), update_time=uow.at)
        uow.put_turn(turn)
        uow.append(AttemptSuperseded(superseded_attempt=turn.attempt, message_id=turn.next_message_id), turn=turn)
    uow.change_head(lease=LeaseChange.RELEASE, wake=None if uow.snapshot.head.suspended else timedelta())
