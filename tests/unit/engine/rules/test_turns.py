"""Runs that fail on a defect: the turn is tried again, later each time, until it fails."""

from datetime import timedelta

import pytest

from tests.builders import NOON, a_session, a_session_key, a_turn, new_id
from turnkeeper.codes import Code
from turnkeeper.domain.event import TurnFailed
from turnkeeper.domain.session import SessionKey, SessionState
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.engine.rules.turns import (
    MAX_LAPSES,
    begin_attempt,
    lapse_limit_error,
    record_tool_results,
    release_for_retry,
)
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.store.changeset import Cancel, Head, LeaseChange, Snapshot

PLACE: SessionKey = a_session_key()


def unit_of_work(turn: Turn, *queue: str) -> UnitOfWork:
    head = Head(
        session_id=turn.session_id,
        tenant=turn.tenant,
        last_seq=5,
        fence=2,
        owner="one",
        owned=True,
        active_turn=turn.id,
        queue=queue,
        cancel=Cancel(),
        lapses=0,
        now=NOON,
    )
    session = a_session(PLACE, state=SessionState.ACTIVE)
    return UnitOfWork(Snapshot(head=head, session=session, turn=turn, calls=(), approvals=()), at=NOON, new_id=new_id)


def running(*, lapses: int) -> Turn:
    return a_turn(PLACE, state=TurnState.RUNNING, attempt=1, lapses=lapses)


@pytest.mark.parametrize(("before", "seconds"), [(0, 1), (1, 2), (2, 4), (3, 8)])
def test_each_further_try_waits_twice_as_long(before: int, seconds: int) -> None:
    uow = unit_of_work(running(lapses=before), "next")
    release_for_retry(uow)
    assert uow.turn.state is TurnState.RUNNING
    assert uow.turn.lapses == before + 1
    assert (uow.head.lease, uow.head.wake) == (LeaseChange.RELEASE, timedelta(seconds=seconds))
    assert uow.head.active_turn is None, "the turn stays in front"
    assert not uow.events


def test_the_fifth_time_the_turn_fails_and_the_next_one_becomes_active() -> None:
    uow = unit_of_work(running(lapses=4), "next")
    release_for_retry(uow)
    assert uow.turn.state is TurnState.FAILED
    assert uow.turn.error is not None
    assert uow.turn.error.code is Code.AGENT_CONFIG_ERROR
    assert [type(event.payload) for event in uow.events] == [TurnFailed]
    assert (uow.head.lease, uow.head.active_turn, uow.head.wake) == (LeaseChange.RELEASE, "next", timedelta())


@pytest.mark.parametrize(
    ("stored", "lapses", "fails"), [(0, 4, False), (4, 0, False), (0, 5, True), (5, 0, True), (3, 2, True)]
)
def test_lost_owners_and_failed_runs_count_together(stored: int, lapses: int, fails: bool) -> None:
    error = lapse_limit_error(running(lapses=stored), lapses=lapses)
    assert (error is not None) is fails
    assert error is None or (error.code is Code.AGENT_CONFIG_ERROR and str(stored + lapses) in error.message)
    assert MAX_LAPSES == 5


def test_they_count_until_a_changeset_makes_progress() -> None:
    uow = unit_of_work(running(lapses=1))
    begin_attempt(uow, lapses=2)
    assert uow.turn.lapses == 3
    record_tool_results(uow, [])
    assert uow.turn.lapses == 0
