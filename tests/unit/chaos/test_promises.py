"""The checker of `make chaos` can fail: each promise is broken in a small run, and only its violation is found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.checker import PROMISES, judge
from tests.chaos.effects import hash_of
from tests.chaos.history import Chain, Prompt
from tests.unit.chaos.defects import (
    DEFECTS,
    a_call_was_refused_without_a_time_to_come_back,
    a_stream_was_refused_by_grpc_itself,
    connections_broke,
)
from tests.unit.chaos.ends_of_calls import WRONG_ENDS
from tests.unit.chaos.foreign_votes import FOREIGN_VOTES
from tests.unit.chaos.leaks import LEAKS
from tests.unit.chaos.runs import APPROVE, REJECT, SESSION, SESSION_ID, Run, clean
from turnkeeper.pb.v1 import event_pb2

Break = Callable[[Run], None]


def broken(run: Run) -> set[str]:
    """Returns the promises that the checker finds broken."""
    return {name for name, finding in judge(run.history()).items() if finding.violations}


def test_a_clean_run_breaks_nothing() -> None:
    findings = judge(clean().history())
    assert {name: finding.violations for name, finding in findings.items() if finding.violations} == {}


def test_every_promise_has_something_to_look_at_in_the_clean_run() -> None:
    findings = judge(clean().history())
    assert [name for name in PROMISES if not findings[name].checked] == []


def test_an_empty_run_holds_nothing() -> None:
    findings = judge(Run(head={"last_seq": 0, "fence": 0}).history())
    assert [name for name, finding in findings.items() if finding.checked] == []


# --- each promise, broken --------------------------------------------------------------------------------------


def a_number_is_left_out(run: Run) -> None:
    run.events[-1][0].sequence += 1
    run.chains.clear()


def a_number_comes_twice(run: Run) -> None:
    run.events[-1][0].sequence -= 1
    run.chains.clear()


def the_head_has_another_number(run: Run) -> None:
    run.head["last_seq"] += 1


def a_reader_missed_an_event(run: Run) -> None:
    change_items(run, lambda items: [item for item in items if item[0] != 2])


def a_reader_missed_the_last_event(run: Run) -> None:
    change_items(run, lambda items: items[:-1])


def a_reader_was_given_an_event_twice(run: Run) -> None:
    change_items(run, lambda items: [*items[:1], *items])


def a_reader_was_given_other_bytes(run: Run) -> None:
    change_items(run, lambda items: [[items[0][0], items[0][1], "other", "", 0], *items[1:]])


def a_reader_of_one_turn_was_given_another_turns_event(run: Run) -> None:
    items = run.chains[0].items
    run.chains[0] = replace(run.chains[0], request="r-t1", items=[item for item in items if item[0] in (2, 7)])


def a_reader_was_given_what_is_not_stored(run: Run) -> None:
    run.chains.append(replace(run.chains[0], session="birch/s1"))


def an_acknowledged_message_is_gone(run: Run) -> None:
    request = {"request": "r-9", "text": "say x: y"}
    run.tried("SendMessage", request, turn="t1", session=SESSION, sequence=99)


def an_acknowledged_message_has_another_text(run: Run) -> None:
    run.tried("SendMessage", {"request": "r-9", "text": "other"}, turn="t1", session=SESSION, sequence=2)


def an_acknowledged_session_is_gone(run: Run) -> None:
    run.tried("CreateSession", {"request": "c9"}, session="s9", sequence=1)


def an_acknowledged_cancel_is_gone(run: Run) -> None:
    run.tried("CancelTurn", {"request_turn": "t1"}, turn="t1", session=SESSION, sequence=2)


def an_acknowledged_retry_is_gone(run: Run) -> None:
    run.tried("RetryTurn", {"request_turn": "t3", "request": "x"}, turn="t3", session=SESSION, sequence=2)


def an_acknowledged_end_is_gone(run: Run) -> None:
    run.tried("EndSession", {}, session=SESSION, sequence=3)


def an_acknowledged_decision_is_gone(run: Run) -> None:
    run.tried("DecideApproval", {"approval": "a-2", "decision": APPROVE}, approval="a-2", sequence=1)


def a_completed_turn_has_another_answer(run: Run) -> None:
    run.turns["t1"]["answer"] = [{"text": "something else"}]


def a_completed_turn_was_undone(run: Run) -> None:
    run.turns["t1"]["state"] = "FAILED"


def a_fence_falls(run: Run) -> None:
    event, _ = run.events[-1]
    run.events[-1] = (event, 5)


def the_heads_fence_falls(run: Run) -> None:
    run.head["fence"] = 5


def an_earlier_attempt_writes_after_a_later_one(run: Run) -> None:
    run.find("message_completed", "t1").attempt = 1
    run.chains.clear()


def a_tool_starts_twice(run: Run) -> None:
    run.effects.append(run.effects[0])


def a_tool_starts_twice_and_the_ledger_knows(run: Run) -> None:
    run.effects.append(run.effects[0])
    run.add_after("tool_started", run.find("tool_started"))


def a_tool_starts_under_another_key(run: Run) -> None:
    run.effects[0] = replace(run.effects[0], key="key-9")


def a_tool_takes_effect_that_was_never_started(run: Run) -> None:
    run.effects[0] = replace(run.effects[0], call="call-4", tool="pledge", key="key-4")
    run.effects[0] = replace(run.effects[0], arguments=_hash_of_pledge())


def a_tool_runs_without_its_approval(run: Run) -> None:
    run.find("approval_decided").approval_decided.decision = event_pb2.APPROVAL_DECISION_GIVE_UP
    run.chains.clear()
    run.tries = [call for call in run.tries if call.rpc != "DecideApproval" or not call.ok]


def two_decisions_are_acknowledged(run: Run) -> None:
    """The second names the first one's event, which breaks I3, too."""
    first = run.find("approval_decided").sequence
    run.tried("DecideApproval", {"approval": "a-2", "decision": REJECT}, approval="a-2", sequence=first)


def an_approval_differs_from_its_log(run: Run) -> None:
    run.approvals["a-2"]["state"] = "REJECTED"


def an_approval_is_withdrawn_after_its_decision(run: Run) -> None:
    ended = event_pb2.Event(session_id=SESSION_ID, turn_id="t2", attempt=1)
    ended.approval_withdrawn.approval_id = "a-2"
    run.add_after("approval_decided", ended)


def an_approval_is_pending_though_it_was_decided(run: Run) -> None:
    run.approvals["a-2"]["state"] = "PENDING"


def an_approval_is_decided_and_expires(run: Run) -> None:
    decided = event_pb2.Event(session_id=SESSION_ID, turn_id="t4", attempt=1)
    decided.approval_decided.approval_id, decided.approval_decided.tool_call_id = "a-4", "call-4"
    decided.approval_decided.arguments_hash = "hash-4"
    run.add_after("approval_expired", decided)


def a_decider_got_an_expiry_error_without_an_expiry(run: Run) -> None:
    request = {"approval": "a-2", "decision": APPROVE}
    run.tried("DecideApproval", request, status="FAILED_PRECONDITION", reason="APPROVAL_EXPIRED")


def a_request_has_two_turns(run: Run) -> None:
    first = next(call for call in run.tries if call.request.get("request") == "r-t1")
    other = next(call for call in run.tries if call.request.get("request") == "r-t2")
    run.tries.append(replace(other, request={**other.request, "request": "r-t1", "body": first.request["body"]}))


def a_request_is_accepted_with_two_bodies(run: Run) -> None:
    first = next(call for call in run.tries if call.request.get("request") == "r-t1")
    run.tries.append(replace(first, request={**first.request, "body": "other"}))


def a_message_is_received_twice(run: Run) -> None:
    again = event_pb2.Event()
    again.CopyFrom(run.find("message_received", "t1"))
    again.attempt = 2
    run.add_after("turn_completed", again)


def an_answer_is_cut(run: Run) -> None:
    part = run.find("message_completed", "t1").message_completed.content[0]
    part.text = part.text[:-1]
    run.chains.clear()


def an_answer_repeats_itself(run: Run) -> None:
    part = run.find("message_completed", "t1").message_completed.content[0]
    part.text += part.text[-3:]
    run.chains.clear()


def an_answer_ignores_the_tools_result(run: Run) -> None:
    run.find("tool_returned", "t2").tool_returned.result_json = '"nothing"'
    run.chains.clear()


def an_interrupted_message_of_a_turn_that_went_on(run: Run) -> None:
    run.find("turn_cancelled", "t3").turn_completed.SetInParent()
    run.chains.clear()
    run.tries = [call for call in run.tries if call.rpc != "CancelTurn"]
    run.find("turn_completed", "t3")


def the_model_was_given_half_a_message(run: Run) -> None:
    run.prompts.append(Prompt(messages=[{"role": "assistant", "content": "Once mo"}]))


def a_document_does_not_fit_its_log(run: Run) -> None:
    run.unfit.append("s1: turn t1: usage")


def a_tool_starts_after_a_cancel(run: Run) -> None:
    started = event_pb2.Event(session_id=SESSION_ID, turn_id="t3", attempt=1)
    started.tool_started.tool_call_id, started.tool_started.key = "call-9", "key-9"
    run.add_after("turn_cancelled", started)


def a_tool_saw_other_arguments(run: Run) -> None:
    run.effects[0] = replace(run.effects[0], arguments="other")


def a_tool_ran_that_was_approved_as_another(run: Run) -> None:
    run.find("approval_decided").approval_decided.arguments_hash = "hash-9"
    run.chains.clear()


def a_turn_whose_client_left_stands_still(run: Run) -> None:
    """The turn was acknowledged as well."""
    run.turns["t4"]["state"] = "RUNNING"


def an_acknowledged_turn_stands_still(run: Run) -> None:
    run.turns["t3"]["state"] = "PENDING"


def a_call_has_no_result(run: Run) -> None:
    """So that the model's answer does not fit either."""
    run.find("tool_returned", "t4").tool_returned.tool_call_id = "call-x"
    run.chains.clear()


def a_call_has_two_results(run: Run) -> None:
    run.add_after("tool_returned", run.find("tool_returned", "t4"))


def the_model_was_given_a_call_without_its_result(run: Run) -> None:
    run.prompts[0] = Prompt(messages=[*run.prompts[0].messages[:2], run.prompts[0].messages[0]])


def a_delta_is_missing(run: Run) -> None:
    change_items(run, lambda items: [item for item in items if item[0] or item[1] != "m2" or item[3] > 0])


def the_last_delta_of_a_text_is_missing(run: Run) -> None:
    change_items(run, lambda items: [item for item in items if item[0] or item[1] != "m2" or item[3] == 0])


def a_delta_comes_twice(run: Run) -> None:
    change_items(
        run, lambda items: [new_item for item in items for new_item in ([item, item] if not item[0] else [item])]
    )


def a_delta_is_contradicted(run: Run) -> None:
    change_items(
        run,
        lambda items: [item if item[0] or item[3] == 0 else [*item[:4], "?" * len(item[4]), item[5]] for item in items],
    )


def a_delta_of_a_lost_attempt_comes_late(run: Run) -> None:
    late = [[0, "m1", 1, 5, "more", "t1"]]
    change_items(
        run, lambda items: [new_item for item in items for new_item in ([item, *late] if item[0] == 4 else [item])]
    )


def change_items(run: Run, change: Callable[[list[Any]], list[Any]]) -> None:
    chain: Chain = run.chains[0]
    run.chains[0] = replace(chain, items=change(list(chain.items)))


def _hash_of_pledge() -> str:
    return hash_of({"label": "u-4"})


BREAKS: dict[Break, set[str]] = {
    a_number_is_left_out: {"I1"},
    a_number_comes_twice: {"I1"},
    the_head_has_another_number: {"I1"},
    a_reader_missed_an_event: {"I2"},
    a_reader_missed_the_last_event: {"I2"},
    a_reader_was_given_an_event_twice: {"I2"},
    a_reader_was_given_other_bytes: {"I2"},
    a_reader_of_one_turn_was_given_another_turns_event: {"I2"},
    a_reader_was_given_what_is_not_stored: {"I2"},
    an_acknowledged_message_is_gone: {"I3"},
    an_acknowledged_message_has_another_text: {"I3"},
    an_acknowledged_session_is_gone: {"I3"},
    an_acknowledged_cancel_is_gone: {"I3"},
    an_acknowledged_retry_is_gone: {"I3"},
    an_acknowledged_end_is_gone: {"I3"},
    an_acknowledged_decision_is_gone: {"I3"},
    a_completed_turn_has_another_answer: {"I3"},
    a_completed_turn_was_undone: {"I3"},
    a_fence_falls: {"I4"},
    the_heads_fence_falls: {"I4"},
    an_earlier_attempt_writes_after_a_later_one: {"I4"},
    a_tool_starts_twice: {"I5"},
    a_tool_starts_twice_and_the_ledger_knows: {"I5"},
    a_tool_starts_under_another_key: {"I5"},
    a_tool_takes_effect_that_was_never_started: {"I5", "outcomes"},
    a_tool_runs_without_its_approval: {"I5"},
    two_decisions_are_acknowledged: {"I3", "I6"},
    an_approval_differs_from_its_log: {"I6"},
    an_approval_is_withdrawn_after_its_decision: {"I6"},
    an_approval_is_pending_though_it_was_decided: {"I6"},
    an_approval_is_decided_and_expires: {"I6", "I7"},
    a_decider_got_an_expiry_error_without_an_expiry: {"I7"},
    a_request_has_two_turns: {"I8"},
    a_request_is_accepted_with_two_bodies: {"I8"},
    a_message_is_received_twice: {"I8"},
    an_answer_is_cut: {"I10"},
    an_answer_repeats_itself: {"I10"},
    an_answer_ignores_the_tools_result: {"I10"},
    an_interrupted_message_of_a_turn_that_went_on: {"I10"},
    the_model_was_given_half_a_message: {"I10"},
    a_document_does_not_fit_its_log: {"I11"},
    a_tool_starts_after_a_cancel: {"I12", "outcomes"},
    **{damage: {"I13"} for damage in LEAKS},
    **{damage: {"defects"} for damage in DEFECTS},
    **WRONG_ENDS,
    **{damage: {"votes"} for damage in FOREIGN_VOTES},
    a_tool_saw_other_arguments: {"I14"},
    a_tool_ran_that_was_approved_as_another: {"I14"},
    a_turn_whose_client_left_stands_still: {"I15", "turns"},
    an_acknowledged_turn_stands_still: {"turns"},
    a_call_has_no_result: {"I10", "I16"},
    a_call_has_two_results: {"I16"},
    the_model_was_given_a_call_without_its_result: {"I16"},
    a_call_was_refused_without_a_time_to_come_back: {"refusals"},
    a_stream_was_refused_by_grpc_itself: {"refusals"},
    a_delta_is_missing: {"texts"},
    the_last_delta_of_a_text_is_missing: {"texts"},
    a_delta_comes_twice: {"texts"},
    a_delta_is_contradicted: {"texts"},
    a_delta_of_a_lost_attempt_comes_late: {"texts"},
}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_the_checker_finds_what_is_broken_and_nothing_else(damage: Break) -> None:
    run = clean()
    damage(run)
    assert broken(run) == BREAKS[damage]


def test_a_broken_connection_is_no_defect() -> None:
    run = clean()
    connections_broke(run)
    assert broken(run) == set()


def test_every_promise_is_broken_by_something() -> None:
    assert set().union(*BREAKS.values()) == set(PROMISES)
