"""A run that broke down: another try, later each time, and an end to tries."""

from datetime import timedelta

import pytest

from tests.builders import NOON, Place, a_place, a_session, a_turn, new_id
from turnkeeper.codes import Code
from turnkeeper.domain.event import TurnFailed
from turnkeeper.domain.session import SessionState
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.engine.decisions import MOST_LAPSES, begin, give_back, record_results, worn_out
from turnkeeper.engine.draft import Draft
from turnkeeper.store.step import Cancel, Head, Lease, Snapshot

PLACE: Place = a_place()


def draft_of(turn: Turn, *queue: str) -> Draft:
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
    return Draft(Snapshot(head=head, session=session, turn=turn, calls=(), approvals=()), at=NOON, new_id=new_id)


def running(*, lapses: int) -> Turn:
    return a_turn(PLACE, state=TurnState.RUNNING, attempt=1, lapses=lapses)


@pytest.mark.parametrize(("before", "seconds"), [(0, 1), (1, 2), (2, 4), (3, 8)])
def test_each_time_the_next_try_waits_twice_as_long(before: int, seconds: int) -> None:
    draft = draft_of(running(lapses=before), "next")
    give_back(draft)
    assert draft.turn.state is TurnState.RUNNING
    assert draft.turn.lapses == before + 1
    assert (draft.head.lease, draft.head.wake) == (Lease.RELEASE, timedelta(seconds=seconds))
    assert draft.head.active_turn is None, "the turn stays in front"
    assert not draft.events


def test_the_fifth_time_the_turn_fails_and_the_queue_goes_on() -> None:
    draft = draft_of(running(lapses=4), "next")
    give_back(draft)
    assert draft.turn.state is TurnState.FAILED
    assert draft.turn.error is not None
    assert draft.turn.error.code is Code.AGENT_CONFIG_ERROR
    assert [type(event.payload) for event in draft.events] == [TurnFailed]
    assert (draft.head.lease, draft.head.active_turn, draft.head.wake) == (Lease.RELEASE, "next", timedelta())


@pytest.mark.parametrize(
    ("kept", "lapses", "is_worn_out"), [(0, 4, False), (4, 0, False), (0, 5, True), (5, 0, True), (3, 2, True)]
)
def test_lost_owners_and_broken_runs_count_together(kept: int, lapses: int, is_worn_out: bool) -> None:
    error = worn_out(running(lapses=kept), lapses=lapses)
    assert (error is not None) is is_worn_out
    assert error is None or (error.code is Code.AGENT_CONFIG_ERROR and str(kept + lapses) in error.message)
    assert MOST_LAPSES == 5


def test_they_count_until_a_step_gets_on() -> None:
    draft = draft_of(running(lapses=1))
    begin(draft, lapses=2)
    assert draft.turn.lapses == 3
    record_results(draft, [])
    assert draft.turn.lapses == 0
