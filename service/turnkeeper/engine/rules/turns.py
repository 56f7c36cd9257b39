"""Decisions of a turn's owner: begin an attempt, record an answer, a failure or results, end or release the turn."""

from collections.abc import Collection, Sequence
from datetime import timedelta

from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.copies import replace
from turnkeeper.domain.event import (
    AttemptFailed,
    AttemptOutcome,
    AttemptSuperseded,
    MessageCompleted,
    TurnCompleted,
    TurnStarted,
)
from turnkeeper.domain.message import FinishReason, Part, Usage
from turnkeeper.domain.policy import ruling_of
from turnkeeper.domain.tool import UNTOLD, Call, CallState, ToolOutcome
from turnkeeper.domain.turn import StopReason, TurnState
from turnkeeper.engine.rules.reconciled import record_reconciled
from turnkeeper.engine.rules.tool_calls import propose
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import RunDefect
from turnkeeper.model.contract import ModelAnswer
from turnkeeper.store.changeset import LeaseChange
from turnkeeper.tools.toolbox import CheckedRequest, Finished

LEASED_DELAY = timedelta(seconds=2)
"""An owner keeps its lease if the next try of the model call is due within this time; else it releases the turn."""
MAX_LOST_OWNERS = 5
"""Owners lost with their process in a row, without progress, after which the turn fails: it may be what kills them."""
MAX_BROKEN_RUNS = 2
"""Runs of a turn that broke on a defect, after which it fails."""


def give_up_error(*, lost_owners: int, broken_runs: int) -> ErrorDetail | None:
    """Returns the error with which a turn must fail after so many lost owners and broken runs, otherwise None."""
    if broken_runs >= MAX_BROKEN_RUNS:
        return RunDefect().to_event()
    if lost_owners < MAX_LOST_OWNERS:
        return None
    message = f"{lost_owners} attempts in a row to run this turn were lost with their server; ask its operator why."
    return ErrorDetail(code=Code.AGENT_CONFIG_ERROR, message=message)


def begin_attempt(uow: UnitOfWork, *, lapses: int) -> None:
    """Begins the turn's next attempt, after a claim.

    `lapses` are the leases that lapsed since the turn's last changeset. If there are any, the text that the last owner
    streamed is void: the next message gets a new id.
    """
    turn = uow.turn
    is_first, is_takeover = turn.attempt == 0, lapses > 0
    message_id = uow.new_id() if is_takeover else turn.next_message_id
    begun = turn.next_attempt(next_message_id=message_id, at=uow.at)
    uow.put_turn(begun)
    if is_first:
        uow.append(TurnStarted(message_id=message_id), turn=begun)
    elif is_takeover:
        uow.append(AttemptSuperseded(superseded_attempt=turn.attempt, message_id=message_id), turn=begun)


def record_answer(uow: UnitOfWork, answer: ModelAnswer, requests: Sequence[CheckedRequest], *, untrusted: bool) -> None:
    """Records a whole message of the model, and proposes the tool calls that it requests.

    `untrusted`: the model had read what an untrusted tool returned.
    """
    turn = uow.turn
    parts = (Part(text=answer.text),) if answer.text else ()
    message = MessageCompleted(
        message_id=turn.next_message_id,
        content=parts,
        tool_requests=tuple(checked.request for checked in requests),
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        model=answer.model,
    )
    uow.append(message, turn=turn)
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
    uow.change_head(progress=True)
    for position, request in enumerate(requests):
        propose(uow, request, position, words=answer.text, untrusted=untrusted)
    if requests:
        uow.put_turn(replace(uow.turn, next_message_id=uow.new_id()))


def record_partial_answer(uow: UnitOfWork, text: str, *, model: str) -> None:
    """Records the text of a message that a cancellation cut off, as INTERRUPTED.

    Changes nothing if there is no text, or if no cancellation of the turn was requested.
    """
    if not text or uow.snapshot.head.cancel.turn_id != uow.turn.id:
        return
    message = MessageCompleted(
        message_id=uow.turn.next_message_id,
        content=(Part(text=text),),
        tool_requests=(),
        finish_reason=FinishReason.INTERRUPTED,
        usage=Usage(),
        model=model,
    )
    uow.append(message, turn=uow.turn)


def record_model_failure(uow: UnitOfWork, error: ErrorDetail, *, tries: int, delay: timedelta | None) -> None:
    """Records that a model call failed for the `tries`-th time in a row.

    The call is tried again after `delay`; if that is None, the turn fails with `error`. For a delay above LEASED_DELAY
    the turn is released as BACKING_OFF, unless its owner was requested to cancel it.
    """
    failed = uow.turn
    outcome = AttemptOutcome.EXHAUSTED if delay is None else AttemptOutcome.RETRYING
    uow.append(AttemptFailed(error=error, outcome=outcome, retry_delay=delay), turn=failed)
    if delay is None:
        uow.fail_turn(error)
        return
    turn = replace(failed.next_attempt(next_message_id=uow.new_id(), at=uow.at), tries=tries, lapses=0)
    uow.change_head(progress=True)
    if delay > LEASED_DELAY and uow.snapshot.head.cancel.turn_id != turn.id:
        turn = replace(turn, state=TurnState.BACKING_OFF)
        uow.change_head(lease=LeaseChange.RELEASE, wake=delay)
    uow.put_turn(turn)


class CallsAreGone(Exception):
    """Calls that this owner runs are not stored any more: the database is being restored to an older state."""


def record_tool_results(uow: UnitOfWork, results: Sequence[Finished]) -> Sequence[ToolOutcome]:
    """Closes each call whose tool has finished, with the tool's result.

    A call that may run twice becomes READY instead, under its idempotency key, if it may start once more.
    A call that must not run twice gets none if it timed out, because its tool may still run, or if the connection to
    its tool broke. Its tool's server may have told what became of it; otherwise an approval asks for its outcome.

    Returns the results' outcomes, TIMED_OUT or UNKNOWN, of the calls that become a question to a person. Raises
    CallsAreGone, with nothing changed.
    """
    by_id = {call.id: call for call in uow.calls}
    if any(finished.call_id not in by_id for finished in results):
        raise CallsAreGone
    unknown: list[tuple[Call, ToolOutcome]] = []
    for finished in results:
        outcome = finished.result.outcome
        if finished.reconciled is not None:
            if (call_in_question := record_reconciled(uow, finished, finished.reconciled)) is not None:
                unknown.append((call_in_question, outcome))
            continue
        call = by_id[finished.call_id]
        if outcome in UNTOLD and not call.tool_class.may_start_again:
            unknown.append((call, outcome))
        elif call.tool_class.may_start_again and max(call.starts, 1) < finished.most_starts:
            uow.put_call(call.ready_again())
        else:
            uow.close_call(call, finished.result, duration=finished.duration)
    _ask_for_outcomes(uow, [call for call, _ in unknown])
    uow.put_turn(replace(uow.turn, lapses=0, update_time=uow.at))
    if any(finished.reconciled is None for finished in results):
        uow.change_head(progress=True)
    return [outcome for _, outcome in unknown]


def record_late_result(uow: UnitOfWork, call: Call, finished: Finished) -> bool:
    """Closes a call with the result of its tool, unless its outcome was resolved or requested, or it started again.

    Returns False, with nothing changed, in these cases.
    """
    started = next((open_call for open_call in uow.calls if open_call.id == call.id), None)
    if started is None or started.state is not CallState.STARTED or started.attempt != call.attempt:
        return False
    uow.close_call(started, finished.result, duration=finished.duration)
    uow.put_turn(replace(uow.turn, lapses=0, update_time=uow.at))
    uow.change_head(progress=True)
    return True


def resolve_lost_calls(uow: UnitOfWork, call_ids: Collection[str]) -> int:
    """Resolves calls that a lost owner had started and whose results nothing awaits (promise I5).

    A call that may be repeated becomes READY again, under its idempotency key. One whose result came late is closed
    with it. Any other becomes UNKNOWN, and an approval asks a person for its outcome. Each is taken as it is now.
    Returns how many outcomes are requested.
    """
    unknown: list[Call] = []
    for call in uow.calls:
        if call.id not in call_ids or call.state is not CallState.STARTED:
            continue
        if call.tool_class.may_start_again:
            uow.put_call(call.ready_again())
        elif call.late_result is not None:
            uow.close_call(call, call.late_result)
            uow.put_turn(replace(uow.turn, lapses=0, update_time=uow.at))
            uow.change_head(progress=True)
        else:
            unknown.append(call)
    _ask_for_outcomes(uow, unknown)
    return len(unknown)


def _ask_for_outcomes(uow: UnitOfWork, calls: Sequence[Call]) -> None:
    unknown = [uow.mark_unknown(call) for call in calls]
    for call in unknown:  # after all are marked: each approval shows the others
        uow.request_approval(call, ruling=ruling_of(call))


def complete(uow: UnitOfWork, stop_reason: StopReason) -> None:
    """Ends the turn as COMPLETED, with the model's last message as its answer."""
    turn = replace(uow.turn.ended_as(TurnState.COMPLETED, at=uow.at), stop_reason=stop_reason)
    uow.put_turn(turn)
    uow.append(TurnCompleted(stop_reason=stop_reason, usage=turn.usage, message_id=turn.next_message_id), turn=turn)


def hand_over(uow: UnitOfWork, *, cut: bool) -> None:
    """Releases the turn: any replica may claim it at once, or once a suspended session is resumed.

    `cut`: a message of the model was cut off, so that the text that was streamed of it no longer counts.
    """
    if cut:
        turn = replace(uow.turn, next_message_id=uow.new_id(), update_time=uow.at)
        uow.put_turn(turn)
        uow.append(AttemptSuperseded(superseded_attempt=turn.attempt, message_id=turn.next_message_id), turn=turn)
    uow.change_head(lease=LeaseChange.RELEASE, wake=None if uow.snapshot.head.suspended else timedelta())
