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
from turnkeeper.engine.draft import Draft
from turnkeeper.engine.proposal import propose
from turnkeeper.engine.toolbox import Finished, Toolbox
from turnkeeper.model.contract import ModelAnswer
from turnkeeper.store.step import Lease

HELD_DELAY = timedelta(seconds=2)
"""A shorter wait for the next try keeps the lease; a longer one lets go of it and is a wake-up."""
MOST_LAPSES = 5
"""Owners in a row that were lost without a step; then the turn fails (it may be what kills them)."""


def worn_out(turn: Turn, *, lapses: int) -> ErrorDetail | None:
    """Why the turn must not be tried again: too many owners in a row were lost. `lapses`: since its last step."""
    lost = turn.lapses + lapses
    if lost < MOST_LAPSES:
        return None
    told = f"{lost} attempts in a row to run this turn were lost with their server; ask its operator why."
    return ErrorDetail(code=Code.AGENT_CONFIG_ERROR, message=told)


def begin(draft: Draft, *, lapses: int) -> None:
    """A new attempt after a claim. `lapses`: owners that were lost since the last step; their deltas do not count."""
    turn = draft.turn
    first, taken_over = turn.attempt == 0, lapses > 0
    message_id = draft.new_id() if taken_over else turn.next_message_id
    begun = replace(turn.taken_up(next_message_id=message_id, at=draft.at), lapses=turn.lapses + lapses)
    draft.put_turn(begun)
    if first:
        draft.say(TurnStarted(message_id=message_id), turn=begun)
    elif taken_over:
        draft.say(AttemptSuperseded(superseded_attempt=turn.attempt, message_id=message_id), turn=begun)


def give_back(draft: Draft) -> None:
    """The run broke down on a defect: another try later, longer each time, until the turn is worn out."""
    turn = replace(draft.turn, lapses=draft.turn.lapses + 1, update_time=draft.at)
    draft.put_turn(turn)
    error = worn_out(turn, lapses=0)
    if error is not None:
        draft.fail_turn(error)
        draft.go_on_with_queue()
        return
    draft.change_head(lease=Lease.RELEASE, wake=timedelta(seconds=2 ** (turn.lapses - 1)))


def record_answer(
    draft: Draft, answer: ModelAnswer, requests: Sequence[ToolRequest], *, agent: Agent, toolbox: Toolbox
) -> None:
    """The whole message, and what becomes of the tool calls it asks for."""
    turn = draft.turn
    parts = (Part(text=answer.text),) if answer.text else ()
    said = MessageCompleted(
        message_id=turn.next_message_id,
        content=parts,
        tool_requests=tuple(requests),
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        model=answer.model,
    )
    draft.say(said, turn=turn)
    turn = replace(
        turn,
        iterations=turn.iterations + 1,
        tries=0,
        lapses=0,
        usage=turn.usage + answer.usage,
        finish_reason=answer.finish_reason,
        answer=() if requests else parts,
        update_time=draft.at,
    )
    draft.put_turn(turn)
    for position, request in enumerate(requests):
        propose(draft, request, position, agent=agent, toolbox=toolbox)
    if requests:
        draft.put_turn(replace(draft.turn, next_message_id=draft.new_id()))


def close_partial(draft: Draft, text: str, *, model: str) -> None:
    """Cancelled in mid-message: what was said is kept, closed as INTERRUPTED."""
    if not text or draft.snapshot.head.cancel.turn_id != draft.turn.id:
        return
    said = MessageCompleted(
        message_id=draft.turn.next_message_id,
        content=(Part(text=text),),
        tool_requests=(),
        finish_reason=FinishReason.INTERRUPTED,
        usage=Usage(),
        model=model,
    )
    draft.say(said, turn=draft.turn)


def record_failure(draft: Draft, error: ErrorDetail, *, tries: int, delay: timedelta | None) -> None:
    """A model call failed for the `tries`-th time; `delay` until the next try, None when there is none."""
    failed = draft.turn
    outcome = AttemptOutcome.EXHAUSTED if delay is None else AttemptOutcome.RETRYING
    draft.say(AttemptFailed(error=error, outcome=outcome, retry_delay=delay), turn=failed)
    if delay is None:
        draft.fail_turn(error)
        return
    turn = replace(failed.taken_up(next_message_id=draft.new_id(), at=draft.at), tries=tries, lapses=0)
    if delay > HELD_DELAY and draft.snapshot.head.cancel.turn_id != turn.id:
        turn = replace(turn, state=TurnState.BACKING_OFF)
        draft.change_head(lease=Lease.RELEASE, wake=delay)
    draft.put_turn(turn)


def record_results(draft: Draft, results: Sequence[Finished]) -> None:
    """What the tools gave."""
    by_id = {call.id: call for call in draft.calls}
    for finished in results:
        call = by_id[finished.call_id]
        draft.close_call(call, finished.result, duration=finished.duration)
    draft.put_turn(replace(draft.turn, lapses=0, update_time=draft.at))


def resolve_lost(draft: Draft, calls: Sequence[Call], *, agent: Agent) -> None:
    """Their owner is gone. What may be repeated starts again under its key; about the rest a person is asked (I5)."""
    for call in calls:
        if call.tool_class.may_start_again:
            draft.put_call(call.ready_again())
    lost = [draft.lose(call) for call in calls if not call.tool_class.may_start_again]
    for call in lost:
        draft.ask(call, agent=agent)


def complete(draft: Draft, stop_reason: StopReason) -> None:
    """The last message is the answer."""
    turn = replace(draft.turn.ended_as(TurnState.COMPLETED, at=draft.at), stop_reason=stop_reason)
    draft.put_turn(turn)
    draft.say(TurnCompleted(stop_reason=stop_reason, usage=turn.usage, message_id=turn.next_message_id), turn=turn)


def hand_over(draft: Draft, *, cut: bool) -> None:
    """Anybody may claim the turn at once, or, suspended, once it is resumed.

    `cut`: a message was given up, and its deltas do not count.
    """
    if cut:
        turn = replace(draft.turn, next_message_id=draft.new_id(), update_time=draft.at)
        draft.put_turn(turn)
        draft.say(AttemptSuperseded(superseded_attempt=turn.attempt, message_id=turn.next_message_id), turn=turn)
    draft.change_head(lease=Lease.RELEASE, wake=None if draft.snapshot.head.suspended else timedelta())
