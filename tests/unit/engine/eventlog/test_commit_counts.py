"""Each approval that leaves PENDING is counted once, whichever way it does; the time to decide is that of people."""

from datetime import timedelta

from tests.builders import NOON, a_call
from tests.unit.engine.rules.test_outcomes import PLACE, unit_of_work
from tests.unit.engine.rules.test_votes_of_turns import answer
from tests.unit.telemetry.calls import Meters
from turnkeeper.domain.policy import Ruling
from turnkeeper.domain.remembered import RememberedDecision, RememberScope, binding_for
from turnkeeper.domain.tool import CallState, PolicyAction
from turnkeeper.engine.eventlog.commit_counts import count_ended
from turnkeeper.engine.rules.approvals import decide
from turnkeeper.engine.rules.remembered import approve_by_memory
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.store.changeset import Committed

RULING = Ruling(action=PolicyAction.APPROVE, ttl=timedelta(hours=1))
CALL = a_call(PLACE, turn_id="turn", state=CallState.AWAITING, binding="bound")
DECISION = RememberedDecision(
    approval_id="earlier",
    tool_call_id="call",
    tool=CALL.tool,
    scope=RememberScope.TOOL,
    binding=binding_for(RememberScope.TOOL, "bound", CALL.arguments_json),
    expire_time=NOON + timedelta(hours=1),
    uses_left=2,
    decided_by=("bob",),
)


def counted(uow: UnitOfWork) -> tuple[dict[tuple[tuple[str, str], ...], float], bool]:
    """Returns the approvals that were counted when this was stored, and whether a time to decide was."""
    meters = Meters()
    changeset = uow.changeset(changeset_id="changeset", fence=None)
    count_ended(changeset, Committed(last_seq=uow.next_sequence - 1, fence=1, events=()), meters.metrics)
    read = meters.read()
    approvals = meters.points("turnkeeper.approvals") if "turnkeeper.approvals" in read else {}
    return approvals, "turnkeeper.approval.decision_time" in read


def test_one_that_a_remembered_decision_approves_at_its_birth_is_counted_without_a_time_to_decide() -> None:
    uow = unit_of_work(CALL, remembered=(DECISION,))
    assert approve_by_memory(uow, uow.request_approval(CALL, ruling=RULING))
    assert counted(uow) == ({(("decision", "APPROVED"),): 1}, False)


def test_a_withdrawn_one_is_counted_without_a_time_to_decide_and_a_pending_one_is_not() -> None:
    uow = unit_of_work(CALL)
    approval = uow.request_approval(CALL, ruling=RULING)
    assert counted(uow) == ({}, False)
    uow.withdraw(approval, turn=uow.turn)
    assert counted(uow) == ({(("decision", "WITHDRAWN"),): 1}, False)


def test_one_that_people_decide_is_counted_with_the_time_that_it_took() -> None:
    uow = unit_of_work(CALL)
    approval = uow.request_approval(CALL, ruling=RULING)
    decide(uow, approval.id, answer("bob", arguments_hash=approval.arguments_hash))
    assert counted(uow) == ({(("decision", "APPROVED"),): 1}, True)
