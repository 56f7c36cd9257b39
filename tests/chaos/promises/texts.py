"""Checks the texts for callers and for the model: I10, I16, and the texts that readers put together."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.chaos import messages
from tests.chaos.history import Chain, Document, Finding, History, Logged, text_of
from turnkeeper.pb.v1 import message_pb2

_INTERRUPTED = message_pb2.FINISH_REASON_INTERRUPTED
_NO_LONGER_COUNTS = frozenset({"attempt_failed", "attempt_superseded", "turn_cancelled", "turn_failed", "turn_retried"})
"""After these events, the turn's unfinished text does not count."""


def i10_partial_text_is_never_history(history: History) -> Finding:
    """Falsified by a stored message whose text is not exactly the answer that the user's message has (or, of one that
    is INTERRUPTED, not its beginning, or its turn not cancelled right after); and by a request to the model that holds
    an assistant's message which the log does not.
    """
    finding = Finding()
    for turn, events in history.events_of_turn.items():
        for place, event in enumerate(events):
            if event.kind == "message_completed":
                wrong = _wrong_text(history.messages.get(turn, ""), events, place)
                finding.expect(not wrong, f"{event.session}: event {event.sequence}: {wrong}")
    stored = {
        text_of(event.event.message_completed.content)
        for log in history.logs.values()
        for event in log
        if event.kind == "message_completed"
    }
    for prompt in history.prompts:
        for message in prompt.messages:
            if message["role"] == "assistant":
                content = message.get("content") or ""
                finding.expect(
                    content in stored or not content, f"the model was given {content[:60]!r}, which no log holds"
                )
    return finding


def i16_history_can_be_sent_to_a_model(history: History) -> Finding:
    """Falsified by a tool call that has not exactly one result before the model's next message or the turn's end, by a
    result without its call, and by a request to the model in which a call is not answered before the next message.
    """
    finding = Finding()
    for events in history.events_of_turn.values():
        _paired(events, finding)
    for prompt in history.prompts:
        wrong = _unpaired(prompt.messages)
        finding.expect(not wrong, f"the model was given {wrong}")
    return finding


def texts_of_readers_are_whole(history: History) -> Finding:
    """Falsified by a reader who received a delta with a gap before it, twice, of an attempt that no longer
    counted or of a message that was already whole, or whose deltas are not the text that message_completed then had.
    """
    finding = Finding()
    for chain in history.chains:
        _Text(chain, history, finding).read()
    return finding


def _wrong_text(user_text: str, events: Sequence[Logged], place: int) -> str:
    message = events[place].event.message_completed
    text = text_of(message.content)
    answer = messages.answer(user_text, _results(events[:place]))
    expected = messages.text_with_calls(user_text) if message.tool_requests else answer
    if message.finish_reason == _INTERRUPTED:
        possible = [messages.text_with_calls(user_text), answer, messages.broken_off_text(user_text)]
        follows = [event.kind for event in events[place + 1 :] if event.kind not in _CLOSING][:1]
        if follows != ["turn_cancelled"]:
            return f"an interrupted message, and then {follows}"
        return "" if any(answer.startswith(text) for answer in possible) else f"{text[:60]!r} begins no answer"
    return "" if text == expected else f"{text[:60]!r} ({len(text)}) instead of {expected[:60]!r} ({len(expected)})"


_CLOSING = frozenset({"tool_returned", "approval_withdrawn"})


def _results(events: Sequence[Logged]) -> list[str]:
    """Returns the results of the turn's calls so far, as the model gets them, in the order of the calls."""
    results = {
        event.event.tool_returned.tool_call_id: _as_sent(event.event.tool_returned.result_json)
        for event in events
        if event.kind == "tool_returned"
    }
    tool_calls = [
        request.tool_call_id
        for event in events
        if event.kind == "message_completed"
        for request in event.event.message_completed.tool_requests
    ]
    return [results[call] for call in tool_calls if call in results]


def _as_sent(result_json: str) -> str:
    value = json.loads(result_json)
    return value if isinstance(value, str) else result_json


def _paired(events: Sequence[Logged], finding: Finding) -> None:
    open_calls: set[str] = set()
    for event in events:
        if event.kind == "tool_returned":
            call = event.event.tool_returned.tool_call_id
            finding.expect(call in open_calls, f"{event.session}: {call} has a result too many ({event.sequence})")
            open_calls.discard(call)
        elif event.kind in _NEXT:
            still = f"{event.session}: {sorted(open_calls)} open at event {event.sequence} ({event.kind})"
            finding.expect(not open_calls, still)
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
    """The texts that one reader put together."""

    def __init__(self, chain: Chain, history: History, finding: Finding) -> None:
        self._chain = chain
        self._found = finding
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
        self._expect(message not in self._over, f"{message}: a delta when it was whole, or did not count")
        self._expect(attempt >= highest, f"{message}: a delta of attempt {attempt}, after {highest}")
        self._expect(offset == len(given), f"{message}: a delta at byte {offset}, when {len(given)} were given")
        self._attempts[turn], self._turn_of[message] = max(attempt, highest), turn
        self._texts[message] = given[:offset] + text.encode()

    def _expect(self, holds: bool, otherwise: str) -> None:
        self._found.expect(holds, f"{self._chain.session}: reader {self._chain.number}: {otherwise}")
