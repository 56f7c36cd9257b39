"""Who caused what a turn does, and what a vote changes in the unit of work that stores it."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.builders import NOON, a_call, a_session_key, a_turn, an_approval, new_id
from tests.unit.engine.rules.test_approval_edits import SPEC
from tests.unit.engine.rules.test_outcomes import PLACE, unit_of_work
from turnkeeper.domain.approval import Answer, Approval, ApprovalDecision, ApprovalKind, ApprovalState
from turnkeeper.domain.approval_events import ApprovalDecided, ApprovalVoted
from turnkeeper.domain.approvers import Approvers
from turnkeeper.domain.decider import Decider, Mandate
from turnkeeper.domain.policy import Ruling
from turnkeeper.domain.remembered import RememberRequest, RememberScope
from turnkeeper.domain.tool import CallState, PolicyAction, ToolClass, ToolOutcome, ToolResult
from turnkeeper.domain.turn import TurnState
from turnkeeper.engine.rules.approval_edits import Edit
from turnkeeper.engine.rules.approvals import decide, decide_with_edit
from turnkeeper.engine.rules.messages import RetryRequest, retry
from turnkeeper.engine.rules.tool_calls import submit_result
from turnkeeper.engine.rules.turns import resolve_lost_calls
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import PermissionDenied
from turnkeeper.store.changeset import RequestKey

TWO = Approvers(groups=frozenset({"finance"}), k=2)
FINANCE = frozenset({"finance"})


def answer(
    by: str,
    decision: ApprovalDecision = ApprovalDecision.APPROVE,
    *,
    groups: frozenset[str] = FINANCE,
    arguments_hash: str = "hash-1",
    remember: RememberRequest | None = None,
) -> Answer:
    decider = Decider(person=by, mandates=(Mandate(person=by, groups=groups),))
    return Answer(decision=decision, decider=decider, arguments_hash=arguments_hash, remember=remember)


def waiting(**given: object) -> tuple[UnitOfWork, Approval]:
    """Returns a turn of ada's that waits for two of the group finance."""
    call = a_call(PLACE, turn_id="turn", **given)
    approval = an_approval(
        PLACE, turn_id="turn", tool_call_id=call.id, approvers=TWO, expire_time=NOON + timedelta(hours=1)
    )
    empty = unit_of_work(call)
    turn = a_turn(PLACE, id="turn", state=TurnState.AWAITING_APPROVAL)
    snapshot = replace(empty.snapshot, approvals=(approval,), turn=turn)
    return UnitOfWork(snapshot, at=NOON, new_id=new_id), approval


def test_a_vote_that_does_not_decide_leaves_the_call_and_the_turn_as_they_are() -> None:
    uow, approval = waiting()
    voted = decide(uow, approval.id, answer("bob"))
    assert voted is not None
    assert voted.state is ApprovalState.PENDING
    (event,) = uow.events
    assert isinstance(event.payload, ApprovalVoted)
    assert voted.votes[0].sequence == uow.snapshot.head.last_seq + 1
    stored = uow.changeset(changeset_id="c", fence=None)
    (change,) = stored.approvals
    assert (change.approval, change.lapsed) == (voted, False), "a vote counts before the expiry only"
    assert (stored.calls, stored.turns) == ((), ())
    assert stored.head.wake is None
    (record,) = stored.audit
    assert (record.sequence, record.outcome, record.details["votes"]) == (6, "PENDING", "1 of 2")


def test_the_vote_that_decides_is_followed_by_the_decision_and_the_same_vote_again_stores_nothing() -> None:
    uow, approval = waiting()
    decide(uow, approval.id, answer("bob"))
    events = len(uow.events)
    assert decide(uow, approval.id, answer("bob")) is not None
    assert len(uow.events) == events
    decided = decide(uow, approval.id, answer("eve"))
    assert decided is not None
    assert [type(event.payload) for event in uow.events] == [ApprovalVoted, ApprovalVoted, ApprovalDecided]
    assert (decided.sequence, decided.state) == (8, ApprovalState.APPROVED)
    assert uow.calls[0].state is CallState.READY


def test_an_edit_opens_a_round_by_the_rule_that_now_speaks_and_voids_the_votes_before() -> None:
    uow, approval = waiting()
    decide(uow, approval.id, answer("bob"))
    ruling = Ruling(action=PolicyAction.APPROVE, approvers=replace(TWO, k=3), ttl=timedelta(minutes=5))
    edit = Edit(arguments_json="{}", spec=SPEC, ruling=ruling)
    edited = decide_with_edit(uow, approval.id, answer("eve"), edit)
    assert edited is not None
    assert (edited.state, edited.approvers.k, edited.expire_time) == (
        ApprovalState.PENDING,
        3,
        NOON + timedelta(minutes=5),
    )
    assert [vote.person for vote in edited.votes] == ["eve"]
    free = replace(edit, ruling=Ruling(action=PolicyAction.AUTO))
    uow, approval = waiting()
    alone = decide_with_edit(uow, approval.id, answer("eve"), free)
    assert alone is not None
    assert alone.state is ApprovalState.APPROVED, "what would run by itself takes one person"


def test_no_decision_on_an_edited_call_is_remembered_though_its_author_took_the_vote_back() -> None:
    lenient = replace(TWO, veto=False)
    uow, approval = waiting(binding="bound")
    ruling = Ruling(action=PolicyAction.APPROVE, approvers=lenient)
    edit = Edit(arguments_json="{}", spec=replace(SPEC, tool_class=ToolClass.IDEMPOTENT), ruling=ruling)
    edited = decide_with_edit(uow, approval.id, answer("eve"), edit)
    assert edited is not None
    decide(uow, edited.id, answer("eve", ApprovalDecision.REJECT, arguments_hash=edited.arguments_hash))
    wish = RememberRequest(scope=RememberScope.TOOL, time=timedelta(minutes=1), uses=1)
    decide(uow, edited.id, answer("bob", arguments_hash=edited.arguments_hash, remember=wish))
    voted = decide(uow, edited.id, answer("joe", arguments_hash=edited.arguments_hash, remember=wish))
    assert voted is not None
    assert voted.state is ApprovalState.APPROVED
    assert uow.session.remembered == ()


def test_an_editor_must_be_eligible_in_the_round_before_and_in_the_new_one() -> None:
    others = Ruling(action=PolicyAction.APPROVE, approvers=Approvers(groups=frozenset({"board"})))
    edit = Edit(arguments_json="{}", spec=SPEC, ruling=others)
    for groups in (FINANCE, frozenset({"board"})):
        uow, approval = waiting()
        with pytest.raises(PermissionDenied):
            decide_with_edit(uow, approval.id, answer("eve", groups=groups), edit)


def test_an_outcome_is_asked_of_those_who_let_the_call_start() -> None:
    lost = a_call(PLACE, turn_id="turn", state=CallState.STARTED, started=True, attempt=1, fence=2, approvers=TWO)
    ran_by_itself = replace(lost, id=new_id(), action=PolicyAction.AUTO, approvers=Approvers())
    uow = unit_of_work(lost, ran_by_itself)
    resolve_lost_calls(uow, {lost.id, ran_by_itself.id})
    first, second = uow.approvals
    assert (first.kind, first.approvers, second.approvers) == (ApprovalKind.OUTCOME, TWO, Approvers())
    retried = decide(uow, first.id, replace(answer("bob", ApprovalDecision.RETRY), arguments_hash=first.arguments_hash))
    assert retried is not None
    assert retried.state is ApprovalState.PENDING
    gives_up = answer("bob", ApprovalDecision.GIVE_UP, groups=frozenset())
    given_up = decide(uow, second.id, replace(gives_up, arguments_hash=second.arguments_hash))
    assert given_up is not None
    assert given_up.state is ApprovalState.REJECTED
    with pytest.raises(PermissionDenied):
        decide(uow, first.id, replace(answer("ada", ApprovalDecision.GIVE_UP), arguments_hash=first.arguments_hash))


def test_who_retries_a_turn_and_who_submits_a_result_in_it_caused_its_calls() -> None:
    key = RequestKey(
        tenant=PLACE.tenant, session_id=PLACE.session_id, principal="olga", family="retry_turn", request_id="1"
    )
    ended = replace(a_turn(PLACE, id="turn"), state=TurnState.FAILED)
    empty = unit_of_work()
    head = replace(empty.snapshot.head, active_turn="", owned=False, owner="")
    uow = UnitOfWork(replace(empty.snapshot, turn=ended, head=head), at=NOON, new_id=new_id)
    turn, _ = retry(
        uow, RetryRequest(key=key, fingerprint="", turn_id="turn", through="portal"), last=ended, offer=None
    )
    assert turn.causers == {"ada", "olga", "portal"}

    call = a_call(a_session_key(), turn_id="turn", state=CallState.REQUESTED, started=True, source="client")
    uow, approval = waiting()
    uow.put_call(call, new=True)
    result = ToolResult(outcome=ToolOutcome.OK, result_json="1")
    assert submit_result(uow, call.id, result, by="ada", through="robot")
    assert uow.turn.caused_by == ("robot",)
    with pytest.raises(PermissionDenied):
        decide(uow, approval.id, answer("robot"))
