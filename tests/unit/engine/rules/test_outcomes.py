"""Calls with an UNKNOWN outcome: the approval that asks for it, its answers, and what a session remembers."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import AGENT, NOON, a_call, a_head, a_lone_decider, a_session, a_session_key, a_turn, new_id
from turnkeeper.domain.approval import Answer, ApprovalDecision, ApprovalKind, ApprovalState
from turnkeeper.domain.message import MOST_CALLS
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.session import UNKNOWN_PER_TOOL, SessionKey, SessionState
from turnkeeper.domain.tool import (
    Call,
    CallState,
    PolicyAction,
    ToolClass,
    ToolOutcome,
    ToolResult,
    decision_hash,
)
from turnkeeper.domain.tool_events import ToolReturned
from turnkeeper.domain.turn import CancelReason, TurnState
from turnkeeper.engine.rules import approvals as approval_rules
from turnkeeper.engine.rules.advance import CHANGED_AT_ONCE, Owner, advance_turn
from turnkeeper.engine.rules.tool_calls import (
    MOST_PENDING,
    as_today,
    shows_all_unknown,
)
from turnkeeper.engine.rules.turns import record_late_result, record_tool_results, resolve_lost_calls
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.errors import InvalidRequest
from turnkeeper.policy.policies import Policies
from turnkeeper.store.changeset import Committed, LeaseChange, Snapshot
from turnkeeper.tools import samples
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.toolbox import Finished, Toolbox

PLACE: SessionKey = a_session_key()
TTL = timedelta(minutes=7)
ASKER = replace(AGENT, policy=(PolicyRule(tool="*", action=PolicyAction.AUTO, ttl=TTL),))
D, S, OUTCOME = ApprovalDecision, CallState, ToolOutcome
ADA = a_lone_decider()


def started(**given: object) -> Call:
    return a_call(PLACE, turn_id="turn", state=CallState.STARTED, started=True, attempt=1, fence=2, ttl=TTL, **given)


def unit_of_work(*calls: Call, **given: object) -> UnitOfWork:
    head = a_head(PLACE, last_seq=5, fence=2, owner="one", owned=True, active_turn="turn")
    turn = a_turn(PLACE, id="turn", state=TurnState.RUNNING, attempt=2)
    session = a_session(PLACE, state=SessionState.ACTIVE, **given)
    return UnitOfWork(
        Snapshot(head=head, session=session, turn=turn, calls=calls, approvals=()), at=NOON, new_id=new_id
    )


def with_requested_approvals(*calls: Call, late: ToolOutcome | None = None) -> UnitOfWork:
    """Returns the next decision's unit of work: approvals are requested for the lost calls, and the turn waits.

    With `late`, results with this outcome have come meanwhile.
    """
    uow = unit_of_work(*calls)
    resolve_lost_calls(uow, {call.id for call in calls})
    uow.await_answers(uow.calls)
    stored = uow.snapshot_after(Committed(last_seq=9, fence=2, events=()), by_owner=True)
    if late is not None:
        result = '"late"'
        known = [replace(c, late_attempt=1, late_outcome=late, late_result_json=result) for c in stored.calls]
        shown = [replace(approval, late_result_json=result) for approval in stored.approvals]
        stored = replace(stored, calls=tuple(known), approvals=tuple(shown))
    return UnitOfWork(stored, at=NOON, new_id=new_id)


def test_a_lost_call_gets_an_approval_for_its_outcome_in_the_next_round() -> None:
    call = started(round=1)
    uow = unit_of_work(call)
    resolve_lost_calls(uow, {call.id})
    (question,) = uow.approvals
    (lost,) = uow.calls
    assert (question.kind, question.round, question.arguments_hash) == (ApprovalKind.OUTCOME, 2, decision_hash(lost))
    assert (question.requester, question.expire_time) == (uow.turn.principal, NOON + TTL)
    (lost,) = uow.calls
    assert (lost.state, lost.unsettled, lost.outcome) == (S.UNKNOWN, True, None)
    uow.await_answers(uow.calls)
    assert uow.turn.state is TurnState.AWAITING_OUTCOME
    assert [item.approval_id for item in uow.turn.pending] == [question.id]
    assert uow.head.lease is LeaseChange.RELEASE


@pytest.mark.parametrize("tool_class", [ToolClass.READ_ONLY, ToolClass.IDEMPOTENT])
def test_a_lost_call_that_may_be_repeated_needs_no_approval(tool_class: ToolClass) -> None:
    call = started(tool_class=tool_class)
    uow = unit_of_work(call)
    resolve_lost_calls(uow, {call.id})
    assert not uow.approvals
    assert (uow.calls[0].state, uow.calls[0].key) == (S.READY, call.key)


@pytest.mark.parametrize("outcome", [OUTCOME.OK, OUTCOME.FAILED])
def test_a_lost_call_is_resolved_as_it_is_when_the_owner_decides_again(outcome: ToolOutcome) -> None:
    """Its late result is stored after the owner has read the session: a decision about the call before is refused."""
    before = started(round=1)
    now = replace(before, late_attempt=1, late_outcome=outcome, late_result_json='"done"')
    uow = unit_of_work(now)
    assert resolve_lost_calls(uow, {before.id}) == 0
    (known,) = uow.calls
    assert (known.state, known.outcome, known.unsettled) == (S.RETURNED, outcome, False)
    assert not uow.approvals
    (event,) = uow.events
    assert isinstance(event.payload, ToolReturned)
    assert (event.payload.outcome, event.payload.result_json, event.payload.started) == (outcome, '"done"', True)
    assert uow.head.progress


@pytest.mark.parametrize(
    "late", [{"late_attempt": 2, "late_outcome": OUTCOME.OK}, {"late_attempt": 1, "late_outcome": OUTCOME.CANCELLED}]
)
def test_what_tells_nothing_of_the_last_start_answers_no_question(late: dict[str, Any]) -> None:
    call = started(**late, late_result_json='"done"')
    uow = unit_of_work(call)
    assert resolve_lost_calls(uow, {call.id}) == 1
    assert uow.calls[0].state is S.UNKNOWN
    assert len(uow.approvals) == 1


def test_a_call_that_is_resolved_already_is_left_as_it_is() -> None:
    call = replace(started(), state=S.RETURNED, outcome=OUTCOME.OK)
    uow = unit_of_work(call)
    resolve_lost_calls(uow, {call.id})
    assert (uow.calls, uow.approvals) == ((call,), ())


def timed_out(call: Call, outcome: ToolOutcome = ToolOutcome.TIMED_OUT) -> Finished:
    result = ToolResult(outcome=outcome, result_json='{"error": "late"}')
    return Finished(call_id=call.id, result=result, duration=timedelta(seconds=1))


def returned_ok(call: Call) -> Finished:
    result = ToolResult(outcome=OUTCOME.OK, result_json='"done"')
    return Finished(call_id=call.id, result=result, duration=timedelta(seconds=1))


@pytest.mark.parametrize("outcome", [OUTCOME.TIMED_OUT, OUTCOME.UNKNOWN])
def test_d3_a_call_without_a_known_end_gets_the_approval_of_a_lost_call(outcome: ToolOutcome) -> None:
    call, other = started(round=1), started()
    lost, late = unit_of_work(call, other), unit_of_work(call, other)
    resolve_lost_calls(lost, {call.id})
    assert record_tool_results(late, [timed_out(call, outcome)]) == [outcome]
    (question,), (same) = late.approvals, lost.approvals[0]
    assert replace(question, id=same.id) == same
    assert [replace(c, approval_id="") for c in late.calls] == [replace(c, approval_id="") for c in lost.calls]
    assert [c.approval_id for c in late.calls] == [question.id, ""]
    assert late.session == lost.session
    assert [type(event.payload).__name__ for event in late.events] == ["ApprovalRequested"]


@pytest.mark.parametrize("tool_class", [ToolClass.READ_ONLY, ToolClass.IDEMPOTENT])
def test_d3_a_call_that_timed_out_and_may_be_repeated_has_its_result(tool_class: ToolClass) -> None:
    call = started(tool_class=tool_class)
    uow = unit_of_work(call)
    assert record_tool_results(uow, [timed_out(call)]) == []
    assert not uow.approvals
    assert (uow.calls[0].state, uow.calls[0].outcome) == (S.RETURNED, OUTCOME.TIMED_OUT)


def test_d3_calls_that_timed_out_together_show_each_other_beside_one_that_returned() -> None:
    one, two, three = started(), started(), started()
    uow = unit_of_work(one, two, three)
    record_tool_results(uow, [timed_out(one), returned_ok(two), timed_out(three)])
    shown = {approval.tool_call_id: approval.unknown_tool_call_ids for approval in uow.approvals}
    assert shown == {one.id: (three.id,), three.id: (one.id,)}
    assert [call.state for call in uow.calls] == [S.UNKNOWN, S.RETURNED, S.UNKNOWN]


@pytest.mark.parametrize(
    "now",
    [
        {"state": S.UNKNOWN},
        {"state": S.READY},
        {"state": S.RETURNED, "outcome": OUTCOME.UNKNOWN},
        {"state": S.STARTED, "attempt": 2},
    ],
)
def test_d3_a_late_result_answers_nothing_by_itself(now: dict[str, Any]) -> None:
    call = started()
    uow = unit_of_work(replace(call, **now))
    assert not record_late_result(uow, call, returned_ok(call))
    assert not uow.events


def test_d3_a_result_before_its_approval_was_requested_closes_the_call() -> None:
    call = started()
    uow = unit_of_work(call)
    assert record_late_result(uow, call, returned_ok(call))
    assert (uow.calls[0].state, uow.calls[0].outcome) == (S.RETURNED, OUTCOME.OK)


@pytest.mark.parametrize("outcome", [OUTCOME.OK, OUTCOME.FAILED])
def test_d3_done_without_a_result_takes_the_late_one_as_the_tool_gave_it(outcome: ToolOutcome) -> None:
    uow = with_requested_approvals(started(), late=outcome)
    (question,) = uow.approvals
    decided = approval_rules.decide(
        uow, question.id, Answer(decision=D.MARK_DONE, decider=ADA, arguments_hash=question.arguments_hash)
    )
    assert decided is not None
    assert (decided.state, decided.result_json) == (ApprovalState.APPROVED, "")
    (returned,) = [event.payload for event in uow.events if isinstance(event.payload, ToolReturned)]
    assert (returned.outcome, returned.result_json) == (outcome, '"late"')


def test_d3_done_with_a_result_is_a_persons_also_beside_a_late_one() -> None:
    uow = with_requested_approvals(started(), late=OUTCOME.FAILED)
    answer = Answer(
        decision=D.MARK_DONE,
        decider=ADA,
        arguments_hash=uow.approvals[0].arguments_hash,
        result_json='"mine"',
    )
    approval_rules.decide(uow, uow.approvals[0].id, answer)
    (returned,) = [event.payload for event in uow.events if isinstance(event.payload, ToolReturned)]
    assert (returned.outcome, returned.result_json) == (OUTCOME.OK, '"mine"')


def test_d3_done_without_any_result_is_refused() -> None:
    uow = with_requested_approvals(started())
    (question,) = uow.approvals
    with pytest.raises(InvalidRequest, match="result_json is required"):
        approval_rules.decide(
            uow,
            question.id,
            Answer(decision=D.MARK_DONE, decider=ADA, arguments_hash=question.arguments_hash),
        )
    assert not uow.events


def test_d3_a_call_that_starts_again_under_its_owner_starts_in_a_new_attempt() -> None:
    toolbox = Toolbox([PythonTools([samples.send_message])])
    agent = replace(ASKER, tools=("*",))
    spec = toolbox.find(agent, "send_message")
    assert spec is not None
    arguments = '{"text":"b","to":"a"}'
    first = as_today(started(tool="send_message", arguments_json=arguments), spec, ASKER.policy[0].ruling)
    first = replace(first, arguments_hash=decision_hash(first))
    uow = unit_of_work(replace(first, state=S.READY, attempt=2))
    owner = Owner(agent=agent, toolbox=toolbox, policies=Policies({}), fence=2, running=frozenset(), releasing=False)
    (again,) = advance_turn(uow, owner)
    assert (again.attempt, uow.turn.attempt, uow.turn.state) == (3, 3, TurnState.RUNNING)
    assert uow.events[-1].attempt == 3


@pytest.mark.parametrize("parallel_tools", [1, 4, 1000])
def test_c_calls_that_may_not_start_are_asked_for_in_bounded_decisions(parallel_tools: int) -> None:
    """One call of a thousand timed out: no other call of its tool may start before a person has seen that."""
    toolbox = Toolbox([PythonTools([samples.send_message])])
    limits = replace(ASKER.limits, parallel_tools=parallel_tools)
    agent = replace(ASKER, tools=("*",), limits=limits)
    ready = {"state": S.READY, "tool": "send_message", "arguments_json": '{"text":"b","to":"a"}'}
    calls = [a_call(PLACE, turn_id="turn", position=number, **ready) for number in range(MOST_CALLS)]
    owner = Owner(agent=agent, toolbox=toolbox, policies=Policies({}), fence=2, running=frozenset(), releasing=False)
    uow, decisions = unit_of_work(*calls), 0
    while uow.turn.state is TurnState.RUNNING:
        assert advance_turn(uow, owner) == ()
        assert len(uow.events) <= CHANGED_AT_ONCE
        stored = uow.snapshot_after(Committed(last_seq=9, fence=2, events=()), by_owner=True)
        uow, decisions = UnitOfWork(stored, at=NOON, new_id=new_id), decisions + 1
    assert uow.turn.state is TurnState.AWAITING_APPROVAL
    assert len(uow.approvals) == MOST_PENDING
    denied = [call for call in uow.calls if call.outcome is OUTCOME.DENIED]
    assert not denied, "those that were refused have returned, and are not open"
    assert decisions == MOST_CALLS // CHANGED_AT_ONCE + 1


ANSWERS = [
    (D.RETRY, ApprovalState.APPROVED, S.READY, None, False),
    (D.MARK_DONE, ApprovalState.APPROVED, S.RETURNED, OUTCOME.OK, False),
    (D.GIVE_UP, ApprovalState.REJECTED, S.RETURNED, OUTCOME.UNKNOWN, True),
]


@pytest.mark.parametrize(("decision", "approval", "state", "outcome", "remembered"), ANSWERS)
def test_the_answers_to_an_outcome(
    decision: ApprovalDecision, approval: ApprovalState, state: CallState, outcome: ToolOutcome | None, remembered: bool
) -> None:
    call = started()
    uow = with_requested_approvals(call)
    (question,) = uow.approvals
    result = '{"paper": 3}' if decision is D.MARK_DONE else ""
    answer = Answer(
        decision=decision,
        decider=ADA,
        arguments_hash=question.arguments_hash,
        reason="so",
        result_json=result,
    )
    decided = approval_rules.decide(uow, question.id, answer)
    assert decided is not None
    assert (decided.state, decided.decision, decided.decided_by) == (approval, decision, "ada")
    (now,) = uow.calls
    assert (now.state, now.outcome, now.unsettled, now.key) == (state, outcome, False, call.key)
    assert uow.turn.state is TurnState.RUNNING
    assert uow.head.wake == timedelta()
    assert bool(uow.session.unknown) is remembered
    returned = [event.payload for event in uow.events if isinstance(event.payload, ToolReturned)]
    assert [payload.outcome for payload in returned] == ([outcome] if outcome else [])
    assert all(payload.started for payload in returned)
    if decision is D.MARK_DONE:
        assert returned[0].result_json == result


def test_an_expired_approval_gives_the_call_up() -> None:
    uow = with_requested_approvals(started())
    (question,) = uow.approvals
    later = replace(uow.snapshot, head=replace(uow.snapshot.head, now=NOON + TTL))
    uow = UnitOfWork(later, at=NOON, new_id=new_id)
    (expired,) = approval_rules.expire_lapsed(uow)
    assert (expired.id, expired.state) == (question.id, ApprovalState.EXPIRED)
    (call,) = uow.calls
    assert (call.state, call.outcome, call.unsettled) == (S.RETURNED, OUTCOME.UNKNOWN, False)
    assert uow.session.unknown_calls(call.tool) == (call.id,)


def test_an_end_of_the_turn_leaves_the_call_unknown_and_unsettled() -> None:
    uow = with_requested_approvals(started())
    (question,) = uow.approvals
    uow.cancel_turn(uow.turn, reason=CancelReason.REQUESTED, by="ada")
    (call,) = uow.calls
    assert (call.outcome, call.started, call.unsettled) == (OUTCOME.UNKNOWN, True, True)
    assert not uow.approvals
    assert question.id in {change.approval.id for change in uow.changeset(changeset_id="s", fence=None).approvals}


@pytest.mark.parametrize("tool_class", ToolClass)
def test_a_cut_call_that_must_not_run_twice_is_remembered(tool_class: ToolClass) -> None:
    call = started(tool_class=tool_class)
    uow = unit_of_work(call)
    uow.cancel_turn(uow.turn, reason=CancelReason.REQUESTED, by="ada")
    (closed,) = uow.calls
    assert (closed.outcome, closed.started) == (OUTCOME.CANCELLED, True)
    remembered = () if tool_class.may_start_again else (call.id,)
    assert uow.session.unknown_calls(call.tool) == remembered


def test_after_one_of_two_answers_the_turn_still_waits() -> None:
    uow = with_requested_approvals(started(tool="one"), started(tool="two"))
    first, second = uow.approvals
    approval_rules.decide(uow, first.id, Answer(decision=D.GIVE_UP, decider=ADA, arguments_hash=first.arguments_hash))
    assert uow.turn.state is TurnState.AWAITING_OUTCOME
    assert [item.approval_id for item in uow.turn.pending] == [second.id]
    assert uow.head.wake is None


def test_calls_that_are_lost_together_show_each_other() -> None:
    one, two = started(), started()
    uow = with_requested_approvals(one, two)
    shown = {approval.tool_call_id: approval.unknown_tool_call_ids for approval in uow.approvals}
    assert shown == {one.id: (two.id,), two.id: (one.id,)}


def test_a_call_starts_only_with_every_unknown_call_of_its_tool_in_view() -> None:
    session = a_session(PLACE).with_unknown("search_web", "a").with_unknown("search_web", "b").with_unknown("x", "c")
    uow = unit_of_work(unknown=session.unknown)
    call = a_call(PLACE)
    assert not shows_all_unknown(uow, call)
    assert not shows_all_unknown(uow, replace(call, shown=("a",)))
    assert shows_all_unknown(uow, replace(call, shown=("b", "a")))
    assert shows_all_unknown(uow, replace(call, id="b", shown=("a",)))
    assert shows_all_unknown(uow, replace(call, tool="free"))


def test_a_session_remembers_the_latest_of_each_tool() -> None:
    session = a_session(PLACE).with_unknown("other", "first")
    for number in range(UNKNOWN_PER_TOOL + 5):
        session = session.with_unknown("same", str(number))
    latest = tuple(str(number) for number in range(UNKNOWN_PER_TOOL + 4, 4, -1))
    assert session.unknown_calls("same") == latest
    assert session.unknown_calls("other") == ("first",)
    assert session.without_unknown("20").unknown_calls("same") == tuple(
        call_id for call_id in latest if call_id != "20"
    )
    assert session.with_unknown("same", "20").unknown_calls("same")[0] == "20"
