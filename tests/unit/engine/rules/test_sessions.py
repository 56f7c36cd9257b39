"""Decisions on a session as a whole that depend on what was read beside the snapshot."""

from dataclasses import replace

import pytest

from tests.builders import a_session, a_turn
from tests.unit.engine.rules.test_outcomes import PLACE, unit_of_work
from tests.unit.engine.rules.test_turns import unit_of_work as unit_of_work_with_queue
from turnkeeper.domain.event import SessionCreated, SessionEnded, SessionRestored, TurnCancelled
from turnkeeper.domain.turn import TurnState
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.decide_again import DecideAgain
from turnkeeper.engine.rules.sessions import RestorePoint
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import TurnInProgress
from turnkeeper.store.changeset import LeaseChange


def idle() -> UnitOfWork:
    uow = unit_of_work()
    uow.snapshot = replace(uow.snapshot, head=replace(uow.snapshot.head, active_turn="", owned=False), turn=None)
    return uow


def test_a_restoration_is_one_event_and_names_the_turn_that_may_be_retried() -> None:
    uow = idle()
    last_seq = uow.snapshot.head.last_seq
    sequence = session_rules.restore(uow, RestorePoint(sequence=3, unfinished="turn", last_seq=last_seq), None)
    assert sequence == last_seq + 1
    assert [event.payload for event in uow.events] == [SessionRestored(to_sequence=3)]
    assert uow.session.restored is not None
    assert (uow.session.restored.turn_id, uow.session.restored.retried) == ("turn", False)


def test_a_restoration_reads_again_when_the_log_has_grown() -> None:
    uow = idle()
    point = RestorePoint(sequence=3, unfinished="", last_seq=uow.snapshot.head.last_seq - 1)
    with pytest.raises(DecideAgain):
        session_rules.restore(uow, point, None)


def test_a_session_with_an_active_turn_is_not_restored() -> None:
    uow = unit_of_work()
    with pytest.raises(TurnInProgress):
        session_rules.restore(uow, RestorePoint(sequence=3, unfinished="", last_seq=5), None)


def test_an_end_cancels_the_active_turn_and_the_queue_and_fences_the_owner() -> None:
    active = a_turn(PLACE, state=TurnState.RUNNING)
    queued = a_turn(PLACE, id="queued", state=TurnState.PENDING)
    uow = unit_of_work_with_queue(active, "queued")
    session_rules.end(uow, {"queued": queued}, by="ada", reason="")
    assert [type(event.payload) for event in uow.events] == [TurnCancelled, TurnCancelled, SessionEnded]
    assert (uow.head.lease, uow.head.active_turn, uow.head.queue) == (LeaseChange.BREAK, "", ())


def test_an_end_reads_again_when_a_turn_was_queued_meanwhile() -> None:
    uow = unit_of_work_with_queue(a_turn(PLACE, state=TurnState.RUNNING), "queued")
    with pytest.raises(DecideAgain):
        session_rules.end(uow, {}, by="ada", reason="")


def test_a_log_begins_with_the_sessions_own_fields() -> None:
    session = a_session(PLACE)
    event = session_rules.created_event(session)
    assert isinstance(event.payload, SessionCreated)
    assert (event.payload.agent, event.payload.owner, event.at) == (session.agent, session.owner, session.create_time)
