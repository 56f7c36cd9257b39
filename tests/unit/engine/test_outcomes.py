"""What becomes of a call whose outcome nobody knows: the question, its answers, and what a session remembers."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.builders import AGENT, NOON, Place, a_call, a_place, a_session, a_turn, new_id
from turnkeeper.domain.agent import PolicyRule
from turnkeeper.domain.approval import ApprovalDecision, ApprovalKind, ApprovalState
from turnkeeper.domain.event import ToolReturned
from turnkeeper.domain.session import UNKNOWN_PER_TOOL, SessionState
from turnkeeper.domain.tool import Call, CallState, PolicyAction, ToolClass, ToolOutcome
from turnkeeper.domain.turn import CancelReason, TurnState
from turnkeeper.engine.approvals import decide_in, expire_in
from turnkeeper.engine.decisions import resolve_lost
from turnkeeper.engine.draft import Draft
from turnkeeper.engine.proposal import shows_all_unknown
from turnkeeper.store.step import Cancel, Committed, Head, Lease, Snapshot

PLACE: Place = a_place()
TTL = timedelta(minutes=7)
ASKER = replace(AGENT, policy=(PolicyRule(tool="*", action=PolicyAction.AUTO, ttl=TTL),))
D, S, OUTCOME = ApprovalDecision, CallState, ToolOutcome


def started(**given: object) -> Call:
    return a_call(PLACE, turn_id="turn", state=CallState.STARTED, started=True, attempt=1, fence=2, **given)


def draft_of(*calls: Call, **given: object) -> Draft:
    head = Head(
        session_id=PLACE.session_id,
        tenant=PLACE.tenant,
        last_seq=5,
        fence=2,
        owner="one",
        owned=True,
        active_turn="turn",
        queue=(),
        cancel=Cancel(),
        lapses=0,
        now=NOON,
    )
    turn = a_turn(PLACE, id="turn", state=TurnState.RUNNING, attempt=2)
    session = a_session(PLACE, state=SessionState.ACTIVE, **given)
    return Draft(Snapshot(head=head, session=session, turn=turn, calls=calls, approvals=()), at=NOON, new_id=new_id)


def asked(*calls: Call) -> Draft:
    """The next decision's draft: the lost calls are asked about, and the turn waits."""
    draft = draft_of(*calls)
    resolve_lost(draft, calls, agent=ASKER)
    draft.let_go(draft.calls)
    stored = draft.result(Committed(last_seq=9, fence=2, events=()), by_owner=True)
    return Draft(stored, at=NOON, new_id=new_id)


def test_a_lost_call_is_asked_about_as_the_next_round() -> None:
    call = started(round=1)
    draft = draft_of(call)
    resolve_lost(draft, (call,), agent=ASKER)
    (question,) = draft.approvals
    assert (question.kind, question.round, question.arguments_hash) == (ApprovalKind.OUTCOME, 2, call.arguments_hash)
    assert (question.requester, question.expire_time) == (draft.turn.principal, NOON + TTL)
    (lost,) = draft.calls
    assert (lost.state, lost.unsettled, lost.outcome) == (S.UNKNOWN, True, None)
    draft.let_go(draft.calls)
    assert draft.turn.state is TurnState.AWAITING_OUTCOME
    assert [item.approval_id for item in draft.turn.pending] == [question.id]
    assert draft.head.lease is Lease.RELEASE


@pytest.mark.parametrize("tool_class", [ToolClass.READ_ONLY, ToolClass.IDEMPOTENT])
def test_what_may_be_repeated_is_not_asked_about(tool_class: ToolClass) -> None:
    call = started(tool_class=tool_class)
    draft = draft_of(call)
    resolve_lost(draft, (call,), agent=ASKER)
    assert not draft.approvals
    assert (draft.calls[0].state, draft.calls[0].key) == (S.READY, call.key)


ANSWERS = [
    (D.RETRY, ApprovalState.APPROVED, S.READY, None, False),
    (D.MARK_DONE, ApprovalState.APPROVED, S.RETURNED, OUTCOME.OK, False),
    (D.GIVE_UP, ApprovalState.REJECTED, S.RETURNED, OUTCOME.UNKNOWN, True),
]


@pytest.mark.parametrize(("decision", "approval", "state", "outcome", "remembered"), ANSWERS)
def test_the_answers(
    decision: ApprovalDecision, approval: ApprovalState, state: CallState, outcome: ToolOutcome | None, remembered: bool
) -> None:
    call = started()
    draft = asked(call)
    (question,) = draft.approvals
    result = '{"paper": 3}' if decision is D.MARK_DONE else ""
    decided = decide_in(
        draft, question.id, decision, by="ada", arguments_hash="hash-1", reason="so", result_json=result
    )
    assert decided is not None
    assert (decided.state, decided.decision, decided.decided_by) == (approval, decision, "ada")
    (now,) = draft.calls
    assert (now.state, now.outcome, now.unsettled, now.key) == (state, outcome, False, call.key)
    assert draft.turn.state is TurnState.RUNNING
    assert draft.head.wake == timedelta()
    assert bool(draft.session.unknown) is remembered
    told = [event.payload for event in draft.events if isinstance(event.payload, ToolReturned)]
    assert [each.outcome for each in told] == ([outcome] if outcome else [])
    assert all(each.started for each in told)
    if decision is D.MARK_DONE:
        assert told[0].result_json == result


def test_an_expired_question_is_given_up() -> None:
    draft = asked(started())
    (question,) = draft.approvals
    later = replace(draft.snapshot, head=replace(draft.snapshot.head, now=NOON + TTL))
    draft = Draft(later, at=NOON, new_id=new_id)
    expired = expire_in(draft, question.id)
    assert expired is not None
    assert expired.state is ApprovalState.EXPIRED
    (call,) = draft.calls
    assert (call.state, call.outcome, call.unsettled) == (S.RETURNED, OUTCOME.UNKNOWN, False)
    assert draft.session.unknown_calls(call.tool) == (call.id,)


def test_an_end_leaves_it_unknown_and_unsettled() -> None:
    draft = asked(started())
    (question,) = draft.approvals
    draft.cancel_turn(draft.turn, reason=CancelReason.REQUESTED, by="ada")
    (call,) = draft.calls
    assert (call.outcome, call.started, call.unsettled) == (OUTCOME.UNKNOWN, True, True)
    assert not draft.approvals
    assert question.id in {change.approval.id for change in draft.step(step_id="s", fence=None).approvals}


@pytest.mark.parametrize("tool_class", ToolClass)
def test_a_cut_call_that_must_not_run_twice_is_remembered(tool_class: ToolClass) -> None:
    call = started(tool_class=tool_class)
    draft = draft_of(call)
    draft.cancel_turn(draft.turn, reason=CancelReason.REQUESTED, by="ada")
    (closed,) = draft.calls
    assert (closed.outcome, closed.started) == (OUTCOME.CANCELLED, True)
    remembered = (call.id,) if tool_class is ToolClass.IRREVERSIBLE else ()
    assert draft.session.unknown_calls(call.tool) == remembered


def test_of_two_questions_one_answer_leaves_the_turn_waiting() -> None:
    draft = asked(started(tool="one"), started(tool="two"))
    first, second = draft.approvals
    decide_in(draft, first.id, D.GIVE_UP, by="ada", arguments_hash="hash-1", reason="")
    assert draft.turn.state is TurnState.AWAITING_OUTCOME
    assert [item.approval_id for item in draft.turn.pending] == [second.id]
    assert draft.head.wake is None


def test_calls_that_are_lost_together_show_each_other() -> None:
    one, two = started(), started()
    draft = asked(one, two)
    shown = {approval.tool_call_id: approval.unknown_tool_call_ids for approval in draft.approvals}
    assert shown == {one.id: (two.id,), two.id: (one.id,)}


def test_a_call_starts_only_when_whoever_let_it_start_knew_of_every_unknown_one() -> None:
    session = a_session(PLACE).with_unknown("search_web", "a").with_unknown("search_web", "b").with_unknown("x", "c")
    draft = draft_of(unknown=session.unknown)
    call = a_call(PLACE)
    assert not shows_all_unknown(draft, call)
    assert not shows_all_unknown(draft, replace(call, shown=("a",)))
    assert shows_all_unknown(draft, replace(call, shown=("b", "a")))
    assert shows_all_unknown(draft, replace(call, id="b", shown=("a",)))
    assert shows_all_unknown(draft, replace(call, tool="free"))


def test_a_session_remembers_the_latest_of_each_tool() -> None:
    session = a_session(PLACE).with_unknown("other", "first")
    for number in range(UNKNOWN_PER_TOOL + 5):
        session = session.with_unknown("same", str(number))
    latest = tuple(str(number) for number in range(UNKNOWN_PER_TOOL + 4, 4, -1))
    assert session.unknown_calls("same") == latest
    assert session.unknown_calls("other") == ("first",)
    assert session.without_unknown("20").unknown_calls("same") == tuple(each for each in latest if each != "20")
    assert session.with_unknown("same", "20").unknown_calls("same")[0] == "20"
