"""What clients were answered: I3 and I8."""

from collections.abc import Callable, Mapping

from tests.chaos.history import Finding, History, Logged, Try, text_of

FAMILIES = {"SendMessage": "message", "StreamMessage": "message", "RetryTurn": "retry", "CreateSession": "create"}
MUTATIONS = frozenset({*FAMILIES, "CancelTurn", "EndSession", "DecideApproval"})


def i3_what_was_acknowledged_is_there(history: History) -> Finding:
    """Falsified by an acknowledged session, message, retry, cancel, decision or end that the log does not hold at the
    number that was answered, or by a turn that was reported COMPLETED with an answer and is not, or has another.
    """
    found = Finding()
    for each in history.tries:
        if not each.ok:
            continue
        for rule in (_RULES.get(each.rpc, _nothing), _completed):
            lost = rule(each, history)
            if lost is not None:
                found.expect(not lost, f"{each.session}: {each.rpc} (call {each.number}) was acknowledged: {lost}")
    return found


def i8_a_request_has_one_effect(history: History) -> Finding:
    """Falsified by two answers to one request_id that name different turns, sessions or first events, by an answer
    other than a refusal to a request_id that was used for another body, or by a message that was received twice.
    """
    found = Finding()
    for (session, family, request), tries in _by_request(history).items():
        accepted = [each for each in tries if each.ok]
        bodies = {_body(each) for each in accepted}
        made = {
            (each.told.get("turn"), each.told.get("session") or session, each.told.get("sequence")) for each in accepted
        }
        name = f"{session}: {family} {request}"
        found.expect(len(made) <= 1, f"{name} was answered with {sorted(made, key=str)}")
        found.expect(len(bodies) <= 1, f"{name} was accepted with {len(bodies)} bodies")
    for text, events in _received(history).items():
        numbers = [event.sequence for event in events]
        found.expect(len(events) == 1, f"{events[0].event.session_id}: {text[:30]!r} was received as {numbers}")
    return found


def _by_request(history: History) -> Mapping[tuple[str, str, str], list[Try]]:
    """A session that the server names is not part of the key: the request names none."""
    found: dict[tuple[str, str, str], list[Try]] = {}
    for each in history.tries:
        if each.rpc in FAMILIES and (request := each.asked.get("request")):
            key = (str(each.asked.get("session", "")), FAMILIES[each.rpc], str(request))
            found.setdefault(key, []).append(each)
    return found


def _body(each: Try) -> tuple[str, str]:
    """SendMessage and StreamMessage are one family, and never have one body here."""
    return each.rpc, str(each.asked["body"])


def _received(history: History) -> Mapping[str, list[Logged]]:
    """No two requests of a run say the same."""
    found: dict[str, list[Logged]] = {}
    for log in history.logs.values():
        for event in log:
            if event.kind == "message_received":
                found.setdefault(text_of(event.event.message_received.content), []).append(event)
    return found


# Each: None when the answer acknowledges nothing, "" when all is there, else what is not.


def _nothing(each: Try, history: History) -> str | None:
    return None


def _created(each: Try, history: History) -> str | None:
    event = history.at(str(each.told["session"]), 1)
    return "" if event and event.kind == "session_created" else "there is no such session"


def _message(each: Try, history: History) -> str | None:
    event = history.at(each.session, each.told["sequence"])
    if event is None or event.kind != "message_received" or event.turn != each.told["turn"]:
        return f"event {each.told['sequence']} is {_shown(event)}, not the message of turn {each.told['turn']}"
    same = text_of(event.event.message_received.content) == each.asked["text"]
    return "" if same else f"event {event.sequence} says something else"


def _cancelled(each: Try, history: History) -> str | None:
    if not each.told["sequence"]:
        return None
    event = history.at(each.session, each.told["sequence"])
    return _is(event, "turn_cancelled", each.asked["asked_turn"], each.told["sequence"])


def _retried(each: Try, history: History) -> str | None:
    event = history.at(each.session, each.told["sequence"])
    return _is(event, "turn_retried", each.asked["asked_turn"], each.told["sequence"])


def _ended(each: Try, history: History) -> str | None:
    log = history.logs.get(each.session, ())
    return "" if log and log[-1].kind == "session_ended" else "its log does not end with session_ended"


def _decided(each: Try, history: History) -> str | None:
    approval = history.approvals.get(str(each.asked["approval"]))
    if approval is None:
        return f"there is no approval {each.asked['approval']}"
    event = history.at(approval["session_id"], each.told["sequence"])
    if event is None or event.kind != "approval_decided":
        return f"event {each.told['sequence']} is {_shown(event)}, not the decision on {each.asked['approval']}"
    said = event.event.approval_decided
    same = (said.approval_id, said.decision) == (each.asked["approval"], each.asked["decision"])
    return "" if same else f"event {event.sequence} is another decision"


def _completed(each: Try, history: History) -> str | None:
    if each.told.get("state") != "COMPLETED":
        return None
    turn = history.turns.get(str(each.told["turn"]))
    if turn is None or turn["state"] != "COMPLETED":
        return f"turn {each.told['turn']} was COMPLETED, and is {turn['state'] if turn else 'not there'}"
    same = "".join(part["text"] for part in turn["answer"]) == each.told["answer"]
    return "" if same else f"turn {each.told['turn']} had another answer"


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
