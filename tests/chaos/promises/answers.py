"""Checks the answers of calls: I3 and I8."""

from collections.abc import Callable, Mapping

from tests.chaos import tenants
from tests.chaos.history import Finding, History, Logged, Try, text_of

FAMILIES = {"SendMessage": "message", "StreamMessage": "message", "RetryTurn": "retry", "CreateSession": "create"}
MUTATIONS = frozenset({*FAMILIES, "CancelTurn", "EndSession", "DecideApproval"})


def i3_what_was_acknowledged_is_there(history: History) -> Finding:
    """Falsified by an acknowledged session, message, retry, cancel, decision or end that the log does not hold at the
    number that was answered, or by a turn that was reported COMPLETED with an answer and is not, or has another.
    """
    finding = Finding()
    for call in history.tries:
        if not call.ok:
            continue
        for rule in (_RULES.get(call.rpc, _nothing), _completed):
            lost = rule(call, history)
            if lost is not None:
                finding.expect(not lost, f"{call.session}: {call.rpc} (call {call.number}) was acknowledged: {lost}")
    return finding


def i8_a_request_has_one_effect(history: History) -> Finding:
    """Falsified by two answers to one request_id that name different turns, sessions or first events, by an answer
    other than a refusal to a request_id that was used for another body, or by a message that was received twice.
    """
    finding = Finding()
    for (session, family, request), tries in _by_request(history).items():
        accepted = [call for call in tries if call.ok]
        bodies = {_body(call) for call in accepted}
        effects = {
            (call.answer.get("turn"), call.answer.get("session") or session, call.answer.get("sequence"))
            for call in accepted
        }
        name = f"{session}: {family} {request}"
        finding.expect(len(effects) <= 1, f"{name} was answered with {sorted(effects, key=str)}")
        finding.expect(len(bodies) <= 1, f"{name} was accepted with {len(bodies)} bodies")
    for text, events in _received(history).items():
        numbers = [event.sequence for event in events]
        finding.expect(len(events) == 1, f"{events[0].session}: {text[:30]!r} was received as {numbers}")
    return finding


def _by_request(history: History) -> Mapping[tuple[str, str, str], list[Try]]:
    """Groups calls by request; a session id that the server chose is not part of its name.

    Both tenants use the same ids of requests.
    """
    tries: dict[tuple[str, str, str], list[Try]] = {}
    for call in history.tries:
        if call.rpc in FAMILIES and (request := call.request.get("request")):
            session = call.session if call.request.get("session") else tenants.key(str(call.request["tenant"]), "")
            key = (session, FAMILIES[call.rpc], str(request))
            tries.setdefault(key, []).append(call)
    return tries


def _body(call: Try) -> tuple[str, str]:
    """Returns the body of a call. SendMessage and StreamMessage are one family, and their bodies always differ here."""
    return call.rpc, str(call.request["body"])


def _received(history: History) -> Mapping[str, list[Logged]]:
    """Groups received messages by text: no two requests of a run have the same."""
    received: dict[str, list[Logged]] = {}
    for log in history.logs.values():
        for event in log:
            if event.kind == "message_received":
                received.setdefault(text_of(event.event.message_received.content), []).append(event)
    return received


# Each: None when the answer acknowledges nothing, "" when all is there, else what is not.


def _nothing(call: Try, history: History) -> str | None:
    return None


def _created(call: Try, history: History) -> str | None:
    event = history.at(str(call.answer["session"]), 1)
    return "" if event and event.kind == "session_created" else "there is no such session"


def _message(call: Try, history: History) -> str | None:
    event = history.at(call.session, call.answer["sequence"])
    if event is None or event.kind != "message_received" or event.turn != call.answer["turn"]:
        return f"event {call.answer['sequence']} is {_shown(event)}, not the message of turn {call.answer['turn']}"
    same = text_of(event.event.message_received.content) == call.request["text"]
    return "" if same else f"event {event.sequence} has another text"


def _cancelled(call: Try, history: History) -> str | None:
    if not call.answer["sequence"]:
        return None
    event = history.at(call.session, call.answer["sequence"])
    return _is(event, "turn_cancelled", call.request["request_turn"], call.answer["sequence"])


def _retried(call: Try, history: History) -> str | None:
    event = history.at(call.session, call.answer["sequence"])
    return _is(event, "turn_retried", call.request["request_turn"], call.answer["sequence"])


def _ended(call: Try, history: History) -> str | None:
    log = history.logs.get(call.session, ())
    return "" if log and log[-1].kind == "session_ended" else "its log does not end with session_ended"


def _decided(call: Try, history: History) -> str | None:
    approval = history.approvals.get(str(call.request["approval"]))
    if approval is None:
        return f"there is no approval {call.request['approval']}"
    event = history.at(approval["session_id"], call.answer["sequence"])
    if event is None or event.kind not in ("approval_decided", "approval_voted"):
        return f"event {call.answer['sequence']} is {_shown(event)}, not the decision on {call.request['approval']}"
    decided = getattr(event.event, event.kind)
    name = approval.get("replaced_by") if call.request.get("edited") else call.request["approval"]
    same = (decided.approval_id, decided.decision) == (name, call.request["decision"])
    return "" if same else f"event {event.sequence} is another decision"


def _completed(call: Try, history: History) -> str | None:
    if call.answer.get("state") != "COMPLETED":
        return None
    turn = history.turns.get(str(call.answer["turn"]))
    if turn is None or turn["state"] != "COMPLETED":
        return f"turn {call.answer['turn']} was COMPLETED, and is {turn['state'] if turn else 'not there'}"
    same = "".join(part["text"] for part in turn["answer"]) == call.answer["answer"]
    return "" if same else f"turn {call.answer['turn']} had another answer"


def _is(event: Logged | None, kind: str, turn: str, sequence: int) -> str:
    if event and (event.kind, event.turn) == (kind, turn):
        return ""
    return f"event {sequence} is {_shown(event)}, not {kind} of {turn}"


def _shown(event: Logged | None) -> str:
    return f"{event.kind} of {event.turn}" if event else "not there"


_RULES: Mapping[str, Callable[[Try, History], str | None]] = {
    "CreateSession": _created,
    "SendMessage": _message,
    "StreamMessage": _message,
    "CancelTurn": _cancelled,
    "RetryTurn": _retried,
    "EndSession": _ended,
    "DecideApproval": _decided,
}
