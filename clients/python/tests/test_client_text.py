"""Deltas in any size, cut, repeated, tried again: the text is exact."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper_client import TextAssembler, TextPiece
from turnkeeper_client.delivered import REMEMBERED_TURNS, DeliveredEvents
from turnkeeper_client.pb.v1.event_pb2 import DELTA_KIND_REASONING, Event
from turnkeeper_client_testing.events import completed, delta, failed, retried, started, superseded


def lost_to_another(sequence: int) -> Event:
    """An `attempt_superseded` that is itself of the attempt it ends."""
    event = superseded(sequence, attempt=2)
    event.attempt = 1
    return event


def shown(texts: list[TextPiece]) -> str:
    """Returns what a terminal shows that clears the message at each restart."""
    screen = ""
    for text in texts:
        screen = text if text.restart else screen + text
    return screen


def add_all(assembler: TextAssembler, events: list[Event]) -> list[TextPiece]:
    return [text for event in events if (text := assembler.add(event)) is not None]


def deltas(text: str, cuts: list[int], attempt: int) -> list[Event]:
    """Returns the text as deltas, cut on characters."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [delta(len(text[:start].encode()), text[start:stop], attempt=attempt) for start, stop in pairwise(places)]


def test_a_completed_message_adds_what_the_deltas_lacked() -> None:
    assembler = TextAssembler()
    assert add_all(assembler, [delta(0, "grü"), delta(9, "gap"), completed(2, "grüße")]) == ["grü", "ße"]
    assert assembler.text() == assembler.text("m1") == "grüße"
    assert assembler.is_complete()


def test_a_completed_message_replaces_deltas_that_differ() -> None:
    assembler = TextAssembler()
    texts = add_all(assembler, [delta(0, "Paris"), completed(2, "Rome")])
    assert [(text, text.restart) for text in texts] == [("Paris", False), ("Rome", True)]
    assert assembler.text() == "Rome"


def test_a_shorter_completed_message_withdraws_the_rest() -> None:
    assembler = TextAssembler()
    assert shown(add_all(assembler, [delta(0, "Paris"), completed(2, "")])) == ""


def test_a_message_without_deltas_comes_whole_and_once() -> None:
    assembler = TextAssembler()
    assert add_all(assembler, [completed(2, "Paris"), completed(2, "Paris"), delta(0, "Paris")]) == ["Paris"]


@pytest.mark.parametrize("end", [failed(2), superseded(2, attempt=2), retried(2, attempt=2)])
def test_an_attempt_that_ended_leaves_nothing(end: Event) -> None:
    assembler = TextAssembler()
    add_all(assembler, [delta(0, "Par"), end])
    assert assembler.text("m1") == ""
    assert not assembler.is_complete("m1")


def test_another_attempt_begins_anew_without_an_event_that_ends_the_first() -> None:
    assembler = TextAssembler()
    texts = add_all(assembler, [delta(0, "Par"), delta(0, "Lon", attempt=2), delta(3, "don", attempt=2)])
    assert shown(texts) == assembler.text() == "London"


def test_restarts_is_enough_where_no_other_event_comes() -> None:
    assembler = TextAssembler()
    first = [delta(0, "I look", message="m1"), delta(0, "Par", attempt=2, message="m2")]
    again = [delta(0, "Lon", attempt=3, message="m3", restarts=True), delta(3, "don", attempt=3, message="m3")]
    texts = add_all(assembler, [*first, *again])
    assert [(text, text.restart) for text in texts] == [
        ("I look", False),
        ("Par", False),
        ("Lon", True),
        ("don", False),
    ]
    assert [assembler.text(message) for message in ("m1", "m2", "m3")] == ["I look", "", "London"]


def test_a_message_without_text_withdraws_what_was_shown_before() -> None:
    events = [delta(0, "Half a"), delta(0, "", attempt=2, message="m2", restarts=True)]
    texts = add_all(TextAssembler(), [*events, completed(5, "", attempt=2, message="m2")])
    assert [(text, text.restart) for text in texts] == [("Half a", False), ("", True)]
    assert shown(texts) == ""
    delivered = DeliveredEvents()
    assert [delivered.admit(event) is not None for event in events] == [True, True]


def test_a_reader_that_resumes_without_the_earlier_text_gets_a_restart() -> None:
    assert [text.restart for text in add_all(TextAssembler(), [delta(0, "Lon", attempt=2, restarts=True)])] == [True]


def test_a_delta_that_is_known_in_part_restarts_nothing() -> None:
    events = [delta(0, "Par"), delta(0, "Lon", attempt=2, restarts=True), delta(0, "London", attempt=2, restarts=True)]
    assert [(text, text.restart) for text in add_all(TextAssembler(), events)] == [
        ("Par", False),
        ("Lon", True),
        ("don", False),
    ]
    delivered = DeliveredEvents()
    admitted = [fresh for event in events if (fresh := delivered.admit(event)) is not None]
    assert [(fresh.content_delta.text, fresh.content_delta.restarts) for fresh in admitted] == [
        ("Par", False),
        ("Lon", True),
        ("don", False),
    ]
    assert shown(add_all(TextAssembler(), admitted)) == "London"


@pytest.mark.parametrize("word", [started(1, attempt=2), superseded(1, attempt=2), lost_to_another(1)])
def test_deltas_of_an_attempt_that_is_over_do_not_count(word: Event) -> None:
    delivered = DeliveredEvents()
    assert delivered.admit(word) is not None
    assert delivered.admit(delta(0, "late", attempt=1)) is None
    assert delivered.admit(delta(0, "good", attempt=2)) is not None


def test_a_delta_that_disagrees_about_characters_does_not_count() -> None:
    delivered = DeliveredEvents()
    assert delivered.admit(delta(0, "a")) is not None
    assert delivered.admit(delta(0, "éa")) is None


def test_reasoning_is_not_the_answer() -> None:
    thought = delta(0, "hm")
    thought.content_delta.kind = DELTA_KIND_REASONING
    assembler = TextAssembler()
    assert add_all(assembler, [thought, delta(0, "Paris")]) == ["Paris"]
    delivered = DeliveredEvents()
    assert [delivered.admit(event) for event in (thought, delta(0, "Paris"))] == [thought, delta(0, "Paris")]


def test_a_reader_forgets_turns_long_past() -> None:
    delivered = DeliveredEvents()
    for number in range(1, REMEMBERED_TURNS + 2):
        event = started(number)
        event.turn_id = f"turn {number}"
        assert delivered.admit(event) is not None
    assert len(delivered._partial_messages._turns) == REMEMBERED_TURNS  # noqa: SLF001


@given(
    whole=st.text(alphabet=st.sampled_from("aé€😀"), max_size=12),
    lost=st.lists(st.tuples(st.text(alphabet="xß", max_size=6), st.lists(st.integers(0, 12), max_size=3)), max_size=3),
    cuts=st.lists(st.integers(0, 12), max_size=6),
    other_cuts=st.lists(st.integers(0, 12), max_size=6),
    repeat_from=st.integers(0, 12),
)
def test_the_text_is_exact_whatever_is_delivered_twice(
    whole: str,
    lost: list[tuple[str, list[int]]],
    cuts: list[int],
    other_cuts: list[int],
    repeat_from: int,
) -> None:
    """Failed attempts come first, then the answer; a part of it comes again in other deltas, as after a reconnect."""
    events: list[Event] = []
    for attempt, (text, lost_cuts) in enumerate(lost, start=1):
        events += [*deltas(text, lost_cuts, attempt), failed(attempt + 1, attempt=attempt)]
    last = len(lost) + 1
    answer = deltas(whole, cuts, last)
    events += answer[:repeat_from]
    events += [*deltas(whole, other_cuts, last), *answer, completed(last + 1, whole, attempt=last), *answer]

    assembler, delivered = TextAssembler(), DeliveredEvents()
    raw = add_all(assembler, events)
    assert shown(raw) == assembler.text() == whole

    admitted = [fresh for event in events if (fresh := delivered.admit(event)) is not None]
    assert shown(add_all(TextAssembler(), admitted)) == whole
    delivered_texts = [event.content_delta.text for event in admitted if event.attempt == last and not event.sequence]
    assert "".join(delivered_texts) == whole


def test_only_print_gets_more_than_the_text() -> None:
    text = TextPiece("Rome", message_id="m1", offset=0, restart=True, printed="\n(the answer begins anew)\nRome")
    joined = "".join(iter([text]))
    assert f"{text}|{text:>5}|{joined}|{text + ''}" == "Rome| Rome|Rome|Rome"
    assert str(text).startswith("\n(")
