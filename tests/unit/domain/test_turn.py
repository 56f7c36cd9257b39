"""What a turn does next, by table; when a model call is tried again; what a turn refuses."""

from dataclasses import replace
from datetime import timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import NOON, a_call, a_session_key, a_turn
from turnkeeper.codes import Code
from turnkeeper.domain.message import FinishReason
from turnkeeper.domain.tool import Call, CallState
from turnkeeper.domain.turn import (
    AwaitAnswers,
    AwaitResults,
    CallModel,
    Complete,
    Fail,
    ResolveLost,
    RetryPolicy,
    RunTools,
    Step,
    StopReason,
    TurnState,
    next_step,
)

PLACE = a_session_key(session_id="session")
READY, AWAITING, STARTED, RETURNED = CallState.READY, CallState.AWAITING, CallState.STARTED, CallState.RETURNED
UNKNOWN, REQUESTED = CallState.UNKNOWN, CallState.REQUESTED


def a(name: str, state: CallState, position: int = 0) -> Call:
    return a_call(PLACE, id=name, state=state, position=position, key=name)


def decide(
    *calls: Call,
    running: str = "",
    finish: FinishReason | None = None,
    iterations: int = 1,
    most: int = 8,
    parallel: int = 4,
    placed: str = "",
) -> Step:
    turn = a_turn(PLACE, state=TurnState.RUNNING, finish_reason=finish, iterations=iterations)
    return next_step(
        turn,
        calls,
        running=frozenset(running.split()),
        max_iterations=most,
        parallel_tools=parallel,
        placed=frozenset(placed.split()),
    )


@pytest.mark.parametrize(
    ("step", "because"),
    [
        (decide(), CallModel()),
        (decide(a("1", RETURNED), finish=FinishReason.TOOL_CALLS), CallModel()),
        (decide(finish=FinishReason.STOP), Complete(StopReason.FINISHED)),
        (decide(finish=FinishReason.LENGTH), Complete(StopReason.LENGTH)),
        (decide(finish=FinishReason.STOP, iterations=8), Complete(StopReason.FINISHED)),
        (decide(a("1", READY)), RunTools((a("1", READY),))),
        (decide(a("2", READY, 1), a("1", READY, 0)), RunTools((a("1", READY, 0), a("2", READY, 1)))),
        (decide(a("1", READY), a("2", READY, 1), parallel=1), RunTools((a("1", READY),))),
        (decide(a("1", STARTED), a("2", READY, 1), running="1", parallel=1), AwaitResults()),
        (decide(a("1", READY), a("2", READY, 1), parallel=1, placed="2"), RunTools((a("2", READY, 1),))),
        (decide(a("1", READY), a("2", READY, 1), placed="2"), RunTools((a("2", READY, 1), a("1", READY)))),
        (decide(a("1", STARTED), a("2", READY, 1), running="1"), RunTools((a("2", READY, 1),))),
        (decide(a("1", STARTED), running="1"), AwaitResults()),
        (decide(a("1", STARTED), a("2", AWAITING, 1), running="1"), AwaitResults()),
        (decide(a("1", READY), a("2", AWAITING, 1)), RunTools((a("1", READY),))),
        (decide(a("1", AWAITING)), AwaitAnswers((a("1", AWAITING),))),
        (decide(a("1", READY), a("2", UNKNOWN, 1)), RunTools((a("1", READY),))),
        (decide(a("1", STARTED), a("2", UNKNOWN, 1), running="1"), AwaitResults()),
        (decide(a("1", RETURNED), a("2", UNKNOWN, 1)), AwaitAnswers((a("2", UNKNOWN, 1),))),
        (decide(a("1", RETURNED), a("2", AWAITING, 1)), AwaitAnswers((a("2", AWAITING, 1),))),
        (decide(a("1", STARTED)), ResolveLost((a("1", STARTED),))),
        (decide(a("1", STARTED), a("2", READY, 1)), ResolveLost((a("1", STARTED),))),
        (decide(a("1", STARTED), a("2", STARTED, 1), running="2"), ResolveLost((a("1", STARTED),))),
        (decide(a("1", AWAITING), finish=FinishReason.TOOL_CALLS, iterations=8), AwaitAnswers((a("1", AWAITING),))),
    ],
    ids=[
        "a new turn asks the model",
        "all results are there: ask the model again",
        "the model is done",
        "the model's output limit cut the answer",
        "an answer in the last allowed call is an answer",
        "a ready call runs",
        "in the model's order",
        "no more at once than allowed",
        "no room while another runs",
        "no call takes the slot of one that has its place",
        "what has its place starts first",
        "room for one more",
        "wait for what runs",
        "what runs comes before who is asked",
        "a ready call runs while its sibling waits for a person",
        "only a person can move it on",
        "what is ready runs while a sibling is unknown",
        "what runs ends while a sibling is unknown",
        "only a person knows of the unknown",
        "one of two was answered",
        "a call whose owner is gone",
        "what was lost comes before what is ready",
        "one is lost, one is ours",
        "waiting does not count against the limit",
    ],
)
def test_the_next_step(step: Step, because: Step) -> None:
    assert step == because


@pytest.mark.parametrize("finish", [None, FinishReason.TOOL_CALLS])
def test_the_limit_of_model_calls_ends_the_turn(finish: FinishReason | None) -> None:
    step = decide(finish=finish, iterations=3, most=3)
    assert isinstance(step, Fail)
    assert step.error.code is Code.BUDGET_EXCEEDED
    assert step.error.metadata == {"limit": "max_iterations"}
    assert "3 model calls" in step.error.message


@given(
    states=st.lists(st.sampled_from(CallState), max_size=5),
    ours=st.sets(st.integers(0, 4)),
    finish=st.none() | st.sampled_from(FinishReason),
    iterations=st.integers(0, 4),
    parallel=st.integers(1, 4),
)
def test_every_state_has_a_step_and_no_step_starts_what_it_may_not(
    states: list[CallState], ours: set[int], finish: FinishReason | None, iterations: int, parallel: int
) -> None:
    calls = tuple(a(str(n), state, n) for n, state in enumerate(states))
    running = {call.id for call in calls if call.state is STARTED and int(call.id) in ours}
    step = decide(*calls, running=" ".join(running), finish=finish, iterations=iterations, most=3, parallel=parallel)
    assert isinstance(step, get_args(Step))
    open_calls = [call for call in calls if call.state is not RETURNED]
    match step:
        case RunTools(calls=started):
            assert all(call.state is READY for call in started)
            assert len(started) + len(running) <= parallel
        case ResolveLost(calls=lost):
            assert all(call.state is STARTED and call.id not in running for call in lost)
        case AwaitAnswers(calls=waiting):
            assert not running
            assert {call.state for call in waiting} <= {AWAITING, REQUESTED, UNKNOWN}
            assert len(waiting) == len(open_calls)
        case CallModel() | Complete() | Fail():
            assert not open_calls, "a model is called, and a turn ends, only when every call has a result"
        case AwaitResults():
            assert running


def test_a_turn_ends_once() -> None:
    turn = a_turn(PLACE, state=TurnState.RUNNING, pending=())
    ended = turn.ended_as(TurnState.CANCELLED, at=NOON)
    assert (ended.state, ended.end_time, ended.pending) == (TurnState.CANCELLED, NOON, ())
    with pytest.raises(ValueError, match="cannot end again"):
        ended.ended_as(TurnState.COMPLETED, at=NOON)


def test_taking_a_turn_up_is_a_new_attempt_with_a_new_message() -> None:
    turn = a_turn(PLACE, state=TurnState.BACKING_OFF, attempt=2)
    again = turn.next_attempt(next_message_id="next", at=NOON)
    assert (again.state, again.attempt, again.next_message_id) == (TurnState.RUNNING, 3, "next")


@pytest.mark.parametrize("state", TurnState)
def test_a_state_has_ended_or_moves_or_waits(state: TurnState) -> None:
    waits = state.name.startswith("AWAITING_")
    assert [state.ended, state.moving, waits].count(True) == 1


POLICY = RetryPolicy(max_attempts=4, base=timedelta(seconds=1), most=timedelta(seconds=3))


@pytest.mark.parametrize(
    ("tries", "retry_after", "jitter", "seconds"),
    [
        (1, None, 0.5, 1.0),
        (2, None, 0.5, 2.0),
        (3, None, 0.5, 3.0),
        (4, None, 0.5, None),
        (1, None, 0.0, 0.75),
        (1, None, 1.0, 1.25),
        (1, timedelta(seconds=9), 0.5, 9.0),
        (3, timedelta(seconds=2), 0.5, 3.0),
        (1, timedelta(minutes=15), 0.5, 900.0),
        (1, timedelta(minutes=16), 0.5, None),
        (4, timedelta(seconds=1), 0.5, None),
    ],
)
def test_the_delay_before_the_next_try(
    tries: int, retry_after: timedelta | None, jitter: float, seconds: float | None
) -> None:
    delay = POLICY.delay(tries, retry_after=retry_after, jitter=jitter)
    assert (delay.total_seconds() if delay is not None else None) == seconds


@given(st.integers(1, 1000), st.floats(0, 1))
def test_no_delay_is_longer_than_the_longest_with_its_jitter(tries: int, jitter: float) -> None:
    delay = replace(POLICY, max_attempts=2000).delay(tries, retry_after=None, jitter=jitter)
    assert delay is not None
    assert timedelta() < delay <= POLICY.most * 1.25
