"""When a turn is given up: after owners that were lost with it, and after runs that broke on a defect."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.builders import NOON, a_head, a_session, a_session_key, a_turn, new_id
from turnkeeper.codes import Code, ErrorDetail, Family
from turnkeeper.domain.event import AttemptSuperseded
from turnkeeper.domain.message import FinishReason, Usage
from turnkeeper.domain.session import SessionKey, SessionState
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.engine.rules.turns import (
    MAX_BROKEN_RUNS,
    MAX_LOST_OWNERS,
    begin_attempt,
    give_up_error,
    record_answer,
    record_model_failure,
    record_tool_results,
)
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import RunDefect
from turnkeeper.model.contract import ModelAnswer
from turnkeeper.store.changeset import Snapshot

PLACE: SessionKey = a_session_key()


def unit_of_work(turn: Turn, *queue: str) -> UnitOfWork:
    head = a_head(PLACE, last_seq=5, fence=2, owner="one", owned=True, active_turn=turn.id, queue=queue)
    session = a_session(PLACE, state=SessionState.ACTIVE)
    return UnitOfWork(Snapshot(head=head, session=session, turn=turn, calls=(), approvals=()), at=NOON, new_id=new_id)


def running() -> Turn:
    return a_turn(PLACE, state=TurnState.RUNNING, attempt=1)


def test_a_changeset_tells_what_its_turn_and_session_were_as_read() -> None:
    """So that only what is new of them is written."""
    uow = unit_of_work(running())
    uow.put_turn(replace(uow.turn, tries=1))
    uow.session = replace(uow.session, title="new")
    changeset = uow.changeset(changeset_id="c1", fence=2)
    assert (changeset.turn_as_read, changeset.session_as_read) == (uow.snapshot.turn, uow.snapshot.session)
    assert (changeset.turns, changeset.session) == ((uow.turn,), uow.session)


@pytest.mark.parametrize(("lost_owners", "fails"), [(0, False), (4, False), (5, True), (6, True)])
def test_a_turn_that_kills_its_owners_fails_after_five(lost_owners: int, fails: bool) -> None:
    error = give_up_error(lost_owners=lost_owners, broken_runs=1)
    assert (error is not None) is fails
    assert error is None or (error.code is Code.AGENT_CONFIG_ERROR and str(lost_owners) in error.message)
    assert MAX_LOST_OWNERS == 5


@pytest.mark.parametrize(("broken_runs", "fails"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_turn_whose_run_broke_twice_fails_by_our_defect(broken_runs: int, fails: bool) -> None:
    error = give_up_error(lost_owners=5 if fails else 0, broken_runs=broken_runs)
    assert (error is not None) is fails
    assert error is None or (error.code, error.message) == (Code.RUN_DEFECT, RunDefect().message)
    assert (RunDefect().family, MAX_BROKEN_RUNS) == (Family.ABORTED, 2)


def test_an_attempt_is_no_progress_and_a_whole_answer_a_result_or_a_failed_call_is() -> None:
    uow = unit_of_work(running())
    begin_attempt(uow, lapses=1)
    record_tool_results(uow, [])
    assert (uow.head.progress, type(uow.events[-1].payload)) == (False, AttemptSuperseded)

    uow = unit_of_work(running())
    record_model_failure(uow, ErrorDetail(code=Code.LLM_TIMEOUT, message=""), tries=1, delay=timedelta(seconds=1))
    assert uow.head.progress

    uow = unit_of_work(running())
    answer = ModelAnswer(
        text="Hello.", tool_requests=(), finish_reason=FinishReason.STOP, usage=Usage(model_calls=1), model="small"
    )
    record_answer(uow, answer, (), untrusted=False)
    assert uow.head.progress
