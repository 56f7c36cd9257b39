"""A model's context: built from the log, in every order in which logs are written."""

import time
from collections.abc import Sequence

from tests.builders import NOON
from turnkeeper.domain.event import (
    Event,
    MessageCompleted,
    MessageReceived,
    Payload,
    SessionCreated,
    SessionRestored,
    TurnCancelled,
    TurnCompleted,
    TurnQueued,
    TurnRetried,
    TurnStarted,
)
from turnkeeper.domain.history import TAKEN_BACK, History, unfinished_turn
from turnkeeper.domain.message import FinishReason, Message, Part, Role, ToolRequest, Usage
from turnkeeper.domain.tool import ToolOutcome
from turnkeeper.domain.tool_events import ToolReturned
from turnkeeper.domain.turn import CancelReason, StopReason

Log = Sequence[tuple[str, Payload]]
"""(turn, payload), numbered from 1."""


def completed(text: str, *, finish: FinishReason = FinishReason.STOP, calls: tuple[str, ...] = ()) -> MessageCompleted:
    return MessageCompleted(
        message_id=f"said {text}",
        content=(Part(text=text),) if text else (),
        tool_requests=tuple(ToolRequest(tool_call_id=call, tool="add", arguments_json="{}") for call in calls),
        finish_reason=finish,
        usage=Usage(),
        model="small",
    )


def received(*texts: str) -> MessageReceived:
    parts = tuple(Part(text=text) for text in texts)
    return MessageReceived(message_id=f"asked {texts[0]}", content=parts, principal="ada")


def returned(call: str, result: str, outcome: ToolOutcome = ToolOutcome.OK) -> ToolReturned:
    return ToolReturned(tool_call_id=call, tool="add", outcome=outcome, result_json=result, started=True)


STARTED = TurnStarted(message_id="next")
QUEUED = TurnQueued(position=1)
CANCELLED = TurnCancelled(reason=CancelReason.REQUESTED, principal="ada", usage=Usage())


def events(log: Log) -> list[Event]:
    return [
        Event(sequence=sequence, turn_id=turn, attempt=1, create_time=NOON, payload=payload)
        for sequence, (turn, payload) in enumerate(log, start=1)
    ]


def fold(log: Log) -> History:
    return History.of(events(log))


def texts(history: History, instructions: str = "") -> list[str]:
    return [f"{message.role}: {message.text}" for message in history.messages(instructions)]


def test_a_plain_turn() -> None:
    created = SessionCreated(agent="assistant", agent_version="1", owner="ada", title="")
    history = fold([("", created), ("a", received("Hello, ", "you.")), ("a", STARTED), ("a", completed("Hi."))])
    assert texts(history, "Be brief.") == ["SYSTEM: Be brief.", "USER: Hello, you.", "ASSISTANT: Hi."]
    assert texts(history) == ["USER: Hello, you.", "ASSISTANT: Hi."]


def test_an_entry_names_the_event_that_holds_it() -> None:
    history = fold([("a", received("Hello.")), ("a", STARTED), ("a", completed("Hi."))])
    assert [(entry.sequence, entry.message_id, entry.finish_reason) for entry in history.entries()] == [
        (1, "asked Hello.", None),
        (3, "said Hi.", FinishReason.STOP),
    ]


def test_a_queued_message_counts_from_its_turns_start() -> None:
    log: Log = [
        ("a", received("first")),
        ("a", STARTED),
        ("b", received("second")),
        ("b", QUEUED),
        ("a", completed("one")),
        ("b", STARTED),
        ("b", completed("two")),
    ]
    assert texts(fold(log)) == ["USER: first", "ASSISTANT: one", "USER: second", "ASSISTANT: two"]


def test_a_queued_message_whose_turn_never_began_is_not_part_of_it() -> None:
    log: Log = [
        ("a", received("first")),
        ("a", STARTED),
        ("b", received("second")),
        ("b", QUEUED),
        ("b", CANCELLED),
        ("a", completed("one")),
    ]
    assert texts(fold(log)) == ["USER: first", "ASSISTANT: one"]


def test_one_that_interrupts_comes_after_what_it_interrupted() -> None:
    log: Log = [
        ("a", received("first")),
        ("a", STARTED),
        ("b", received("stop, do this")),
        ("b", QUEUED),
        ("a", completed("I was say", finish=FinishReason.INTERRUPTED)),
        ("a", CANCELLED),
        ("b", STARTED),
        ("b", completed("Done.")),
    ]
    assert texts(fold(log)) == ["USER: first", "ASSISTANT: I was say", "USER: stop, do this", "ASSISTANT: Done."]


def test_an_interrupted_turn_without_an_owner_closes_its_calls_where_it_stands() -> None:
    log: Log = [
        ("a", received("first")),
        ("a", STARTED),
        ("a", completed("", finish=FinishReason.TOOL_CALLS, calls=("1",))),
        ("b", received("never mind")),
        ("a", returned("1", '"cancelled"', ToolOutcome.CANCELLED)),
        ("a", CANCELLED),
        ("b", STARTED),
    ]
    assert texts(fold(log)) == ["USER: first", "ASSISTANT: ", "TOOL: cancelled", "USER: never mind"]


def test_a_turn_that_was_cancelled_before_it_began_to_answer_keeps_its_question() -> None:
    log: Log = [("a", received("first")), ("a", CANCELLED), ("b", received("second")), ("b", STARTED)]
    assert texts(fold(log)) == ["USER: first", "USER: second"]


def test_every_call_is_followed_by_its_result() -> None:
    log: Log = [
        ("a", received("add")),
        ("a", STARTED),
        ("a", completed("Let me see.", finish=FinishReason.TOOL_CALLS, calls=("1", "2"))),
        ("a", returned("2", '{"error":"no"}', ToolOutcome.FAILED)),
        ("a", returned("1", '"three"')),
        ("a", completed("Three.")),
    ]
    messages = fold(log).messages("")
    assert [m.tool_call_id for m in messages if m.role is Role.TOOL] == ["2", "1"]
    assert [m.text for m in messages if m.role is Role.TOOL] == ['{"error":"no"}', "three"]
    assert [request.tool_call_id for request in messages[1].tool_requests] == ["1", "2"]


def test_an_empty_message_is_in_the_entries_and_not_in_the_context() -> None:
    history = fold([("a", received("Hello.")), ("a", STARTED), ("a", completed(""))])
    assert len(history.entries()) == 2
    assert history.messages("") == (Message(role=Role.USER, text="Hello."),)


def test_a_turn_that_begins_a_second_time_keeps_its_position() -> None:
    log: Log = [("a", received("first")), ("a", STARTED), ("a", STARTED), ("a", completed("one"))]
    assert texts(fold(log)) == ["USER: first", "ASSISTANT: one"]


COMPLETED = TurnCompleted(stop_reason=StopReason.FINISHED, usage=Usage(), message_id="m")
RETRIED = TurnRetried(principal="ada", message_id="next")


def back(position: int) -> tuple[str, Payload]:
    return "", SessionRestored(to_sequence=position)


def numbered(log: Log) -> list[Event]:
    return [
        Event(sequence=sequence, turn_id=turn, attempt=1, create_time=NOON, payload=payload)
        for sequence, (turn, payload) in enumerate(log, start=1)
    ]


TWO_TURNS: Log = [
    ("a", received("first")),
    ("a", STARTED),
    ("a", completed("one")),
    ("a", COMPLETED),
    ("b", received("second")),
    ("b", STARTED),
    ("b", completed("two")),
    ("b", COMPLETED),
]


def test_a_restoration_keeps_the_log_up_to_its_position_and_what_comes_later() -> None:
    log: Log = [*TWO_TURNS, back(4), ("c", received("third")), ("c", STARTED), ("c", completed("three"))]
    assert texts(fold(log)) == ["USER: first", "ASSISTANT: one", "USER: third", "ASSISTANT: three"]


def test_a_turn_continues_at_the_position_to_which_it_was_restored() -> None:
    log: Log = [*TWO_TURNS, back(6), ("b", RETRIED), ("b", completed("another two"))]
    assert texts(fold(log))[2:] == ["USER: second", "ASSISTANT: another two"]


def test_a_restoration_behind_another_one_counts_alone() -> None:
    log: Log = [*TWO_TURNS, back(2), back(8), ("c", received("third"))]
    assert texts(fold(log))[-3:] == ["USER: second", "ASSISTANT: two", "USER: third"]
    assert texts(fold([*TWO_TURNS, back(4), ("c", received("third")), back(9)])) == ["USER: first", "ASSISTANT: one"]
    assert texts(fold([*TWO_TURNS, back(4), ("c", received("third")), back(5)]))[-1] == "USER: second"


def test_many_restorations_in_a_row_are_read_in_no_time() -> None:
    """Each one leads to one other: nothing is read twice for each of them."""
    log: list[tuple[str, Payload]] = list(TWO_TURNS)
    log.extend(back(len(log) + number) for number in range(60))
    assert len(fold(log).entries()) == 4


def test_calls_whose_results_were_left_behind_are_closed() -> None:
    log: Log = [
        ("a", received("add")),
        ("a", STARTED),
        ("a", completed("Let me see.", finish=FinishReason.TOOL_CALLS, calls=("1", "2"))),
        ("a", returned("1", '"three"')),
        ("a", returned("2", '"four"')),
        ("a", completed("Three and four.")),
    ]
    results = {
        3: [("1", TAKEN_BACK), ("2", TAKEN_BACK)],
        4: [("1", "three"), ("2", TAKEN_BACK)],
        5: [("1", "three"), ("2", "four")],
        6: [("1", "three"), ("2", "four")],
    }
    for position, expected in results.items():
        history = fold([*log, back(position), ("b", received("and now"))])
        messages = history.messages("")
        assert [(m.tool_call_id, m.text) for m in messages if m.role is Role.TOOL] == expected
        assert messages[-1].text == "and now"
        closed = [entry for entry in history.entries() if entry.message.text == TAKEN_BACK]
        assert all((entry.sequence, entry.turn_id) == (7, "a") for entry in closed)


def test_the_unfinished_turn_at_every_position() -> None:
    log: Log = [
        ("", SessionCreated(agent="assistant", agent_version="1", owner="ada", title="")),
        ("a", received("first")),
        ("a", STARTED),
        ("b", received("second")),
        ("b", QUEUED),
        ("a", COMPLETED),
        ("b", STARTED),
        ("b", CANCELLED),
        ("b", RETRIED),
        ("b", COMPLETED),
        back(7),
        ("b", RETRIED),
        ("b", COMPLETED),
        back(2),
    ]
    events = numbered(log)
    unfinished = [unfinished_turn(events[:position]) for position in range(len(log) + 1)]
    assert unfinished == ["", "", "a", "a", "b", "a", "", "b", "b", "b", "", "b", "b", "", "a"]


MANY = 10_000


def test_any_number_of_queued_turns_is_read_in_linear_time() -> None:
    log: list[tuple[str, Payload]] = []
    for number in range(MANY):
        turn = f"turn-{number}"
        log += [(turn, received("x")), (turn, QUEUED), (turn, STARTED), (turn, completed("x"))]
    began = time.thread_time()
    assert len(fold(log).entries()) == 2 * MANY
    assert unfinished_turn(events(log)) == f"turn-{MANY - 1}"
    assert time.thread_time() - began < 1.5


def test_any_number_of_restorations_is_read_in_linear_time() -> None:
    messages: list[tuple[str, Payload]] = [(f"turn-{number}", received("x")) for number in range(MANY)]
    log = [*messages, *(("", SessionRestored(to_sequence=MANY + place)) for place in range(MANY // 10))]
    began = time.thread_time()
    assert len(fold(log).entries()) == MANY
    assert time.thread_time() - began < 1.5
