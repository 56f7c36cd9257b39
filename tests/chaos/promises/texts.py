"""What was said, to the caller and to the model: I10, I16, and the texts that readers put together."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.chaos import words
from tests.chaos.history import Chain, Document, Finding, History, Logged, text_of
from turnkeeper.pb.v1 import message_pb2

_INTERRUPTED = message_pb2.FINISH_REASON_INTERRUPTED
_NO_LONGER_COUNTS = frozenset({"attempt_failed", "attempt_superseded", "turn_cancelled", "turn_failed", "turn_retried"})
"""After these, what was being said in the turn does not count."""


def i10_partial_text_is_never_history(history: History) -> Finding:
    """Falsified by a stored message whose text is not exactly the answer that the user's words have (or, of one that
    is INTERRUPTED, not its beginning, or its turn not cancelled right after); and by a request to the model that holds
    an assistant's message which the log does not.
    """
    found = Finding()
    for turn, events in history.events_of_turn.items():
        for place, event in enumerate(events):
            if event.kind == "message_completed":
                wrong = _wrong_text(history.said.get(turn, ""), events, place)
                found.expect(not wrong, f"{event.event.session_id}: event {event.sequence}: {wrong}")
    stored = {
        text_of(event.event.message_completed.content)
        for log in history.logs.values()
        for event in log
        if event.kind == "message_completed"
    }
    for prompt in history.prompts:
        for message in prompt.messages:
            if message["role"] == "assistant":
                said = message.get("content") or ""
                found.expect(said in stored or not said, f"the model was given {said[:60]!r}, which no log holds")
    return found


def i16_history_can_be_sent_to_a_model(history: History) -> Finding:
    """Falsified by a tool call that has not exactly one result before the model's next message or the turn's end, by a
    result without its call, and by a request to the model in which a call is not answered before anybody else speaks.
    """
    found = Finding()
    for events in history.events_of_turn.values():
        _paired(events, found)
    for prompt in history.prompts:
        wrong = _unpaired(prompt.messages)
        found.expect(not wrong, f"the model was given {wrong}")
    return found


def texts_of_readers_are_whole(history: History) -> Finding:
    """Falsified by a reader who was given a piece of text with a gap before it, twice, of an attempt that no longer
    counted or of a message that was already whole, or whose pieces are not the text that message_completed then had.
    """
    found = Finding()
    for chain in history.chains:
        _Text(chain, history, found).read()
    return found


def _wrong_text(said: str, events: Sequence[Logged], place: int) -> str:
    message = events[place].event.message_completed
    text = text_of(message.content)
    answer = words.answer(said, _results(events[:place]))
    wanted = words.asking(said) if message.tool_requests else answer
    if message.finish_reason == _INTERRUPTED:
        possible = [words.asking(said), answer, words.spoilt(said)]
        follows = [event.kind for event in events[place + 1 :] if event.kind not in _CLOSING][:1]
        if follows != ["turn_cancelled"]:
            return f"an interrupted message, and then {follows}"
        return "" if any(each.startswith(text) for each in possible) else f"{text[:60]!r} begins no answer"
    return "" if text == wanted else f"{text[:60]!r} ({len(text)}) instead of {wanted[:60]!r} ({len(wanted)})"


_CLOSING = frozenset({"tool_returned", "approval_withdrawn"})


def _results(events: Sequence[Logged]) -> list[str]:
    """What the model is told of the turn's calls so far, by the calls' places."""
    told = {
        event.event.tool_returned.tool_call_id: _as_told(event.event.tool_returned.result_json)
        for event in events
        if event.kind == "tool_returned"
    }
    asked = [
        request.tool_call_id
        for event in events
        if event.kind == "message_completed"
        for request in event.event.message_completed.tool_requests
    ]
    return [told[call] for call in asked if call in told]


def _as_told(result_json: str) -> str:
    value = json.loads(result_json)
    return value if isinstance(value, str) else result_json


def _paired(events: Sequence[Logged], found: Finding) -> None:
    open_calls: set[str] = set()
    for event in events:
        if event.kind == "tool_returned":
            call = event.event.tool_returned.tool_call_id
            found.expect(
                call in open_calls, f"{event.event.session_id}: {call} has a result too many ({event.sequence})"
            )
            open_calls.discard(call)
        elif event.kind in _NEXT:
            still = f"{event.event.session_id}: {sorted(open_calls)} open at event {event.sequence} ({event.kind})"
            found.expect(not open_calls, still)
            open_calls = set()
        if event.kind == "message_completed":
            open_calls = {request.tool_call_id for request in event.event.message_completed.tool_requests}


_NEXT = frozenset({"message_completed", "turn_completed", "turn_failed", "turn_cancelled"})


def _unpaired(messages: Sequence[Document]) -> str:
    open_calls: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                return f"a result without its call {message['tool_call_id']}"
            open_calls.remove(message["tool_call_id"])
            continue
        if open_calls:
            return f"the calls {sorted(open_calls)} without results"
        open_calls = {call["id"] for call in message.get("tool_calls") or ()}
    return f"the calls {sorted(open_calls)} without results" if open_calls else ""


class _Text:
    """What one reader put together."""

    def __init__(self, chain: Chain, history: History, found: Finding) -> None:
        self._chain = chain
        self._found = found
        self._log = {event.sequence: event for event in history.logs.get(chain.session, ())}
        self._texts: dict[str, bytes] = {}
        self._turn_of: dict[str, str] = {}
        self._attempts: dict[str, int] = {}
        self._over: set[str] = set()

    def read(self) -> None:
        rules: Mapping[bool, Callable[[Sequence[Any]], None]] = {True: self._durable, False: self._delta}
        for item in self._chain.items:
            rules[item[0] > 0](item)

    def _durable(self, item: Sequence[Any]) -> None:
        number, kind, turn = item[0], item[1], item[3]
        if kind in _NO_LONGER_COUNTS:
            self._over |= {message for message, of in self._turn_of.items() if of == turn}
        stored = self._log.get(number)
        if kind != "message_completed" or stored is None:
            return
        message = stored.event.message_completed
        self._over.add(message.message_id)
        if message.message_id in self._texts:
            given, whole = self._texts[message.message_id], text_of(message.content).encode()
            self._expect(given == whole, f"{message.message_id}: {len(given)} bytes of {len(whole)}, or others")

    def _delta(self, item: Sequence[Any]) -> None:
        _, message, attempt, offset, text, turn = item
        given = self._texts.get(message, b"")
        highest = self._attempts.get(turn, 0)
        self._expect(message not in self._over, f"{message}: a piece when it was whole, or did not count")
        self._expect(attempt >= highest, f"{message}: a piece of attempt {attempt}, after {highest}")
        self._expect(offset == len(given), f"{message}: a piece at byte {offset}, when {len(given)} were given")
        self._attempts[turn], self._turn_of[message] = max(attempt, highest), turn
        self._texts[message] = given[:offset] + text.encode()

    def _expect(self, holds: bool, otherwise: str) -> None:
        self._found.expect(holds, f"{self._chain.session}: reader {self._chain.number}: {otherwise}")
