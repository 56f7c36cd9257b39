"""Runs in which the log has another end of a tool call than its tool, and one in which a session takes no message."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from tests.unit.chaos.runs import SESSION_ID, Run
from turnkeeper.pb.v1 import event_pb2


def a_call_started_and_never_ended(run: Run) -> None:
    """The turn's results do not fit either."""
    run.find("tool_returned", "t2").tool_returned.tool_call_id = "call-x"
    run.chains.clear()


def a_call_is_ok_and_took_no_effect(run: Run) -> None:
    run.effects.clear()


def a_call_failed_and_took_effect(run: Run) -> None:
    run.find("tool_returned", "t2").tool_returned.outcome = event_pb2.TOOL_OUTCOME_FAILED
    run.chains.clear()


def an_unknown_outcome_was_never_a_question(run: Run) -> None:
    run.find("tool_returned", "t2").tool_returned.outcome = event_pb2.TOOL_OUTCOME_UNKNOWN
    run.chains.clear()


def a_server_states_done_without_an_effect(run: Run) -> None:
    run.find("approval_decided").approval_decided.decision = event_pb2.APPROVAL_DECISION_MARK_DONE
    run.effects.clear()
    reconciled(run, event_pb2.RECONCILED_STATE_DONE)


def a_server_states_that_nothing_started_and_it_took_effect(run: Run) -> None:
    reconciled(run, event_pb2.RECONCILED_STATE_NOT_STARTED)


def a_server_states_a_failure_without_an_effect_and_it_took_effect(run: Run) -> None:
    reconciled(run, event_pb2.RECONCILED_STATE_FAILED)


def the_next_message_is_never_answered(run: Run) -> None:
    run.next_messages = [{**run.next_messages[0], "state": ""}]


def reconciled(run: Run, state: event_pb2.ReconciledState.ValueType, *, attempt: int = 1) -> None:
    """Adds what the tool's own server told of the call that was paid."""
    event = event_pb2.Event(session_id=SESSION_ID, turn_id="t2", attempt=1)
    event.tool_reconciled.tool_call_id, event.tool_reconciled.attempt = "call-2", attempt
    event.tool_reconciled.state = state
    run.add_after("tool_started", event)


def it_starts_again_once_its_server_has_refused_the_start(run: Run) -> None:
    """A run that is not broken: the second start alone took effect."""
    again = event_pb2.Event()
    again.CopyFrom(run.find("tool_started"))
    reconciled(run, event_pb2.RECONCILED_STATE_NOT_STARTED)
    again.attempt = 2
    run.add_after("tool_reconciled", again)
    run.effects[0] = replace(run.effects[0], attempt=2)
    for event, _ in run.events:
        if event.turn_id == "t2" and event.sequence > run.find("tool_reconciled").sequence:
            event.attempt = 2


WRONG_ENDS: Mapping[Callable[[Run], None], set[str]] = {
    a_call_started_and_never_ended: {"I10", "I16", "outcomes"},
    a_call_is_ok_and_took_no_effect: {"outcomes"},
    a_call_failed_and_took_effect: {"outcomes"},
    an_unknown_outcome_was_never_a_question: {"outcomes"},
    a_server_states_done_without_an_effect: {"outcomes"},
    a_server_states_that_nothing_started_and_it_took_effect: {"outcomes"},
    a_server_states_a_failure_without_an_effect_and_it_took_effect: {"outcomes"},
    the_next_message_is_never_answered: {"sessions"},
}
"""Each of them, and the promises that it breaks."""
