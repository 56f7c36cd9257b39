"""Checks the ends of turns: I9's end, I11 and I15."""

from collections.abc import Mapping

from tests.chaos.history import Document, Finding, History

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
WAITING = frozenset({"AWAITING_APPROVAL", "AWAITING_TOOL", "AWAITING_BUDGET", "AWAITING_OUTCOME"})


def acknowledged_turns(history: History) -> frozenset[str]:
    """Returns the turns that were acknowledged to a client."""
    answers = (call.answer for call in history.tries)
    return frozenset(str(answer["turn"]) for answer in answers if answer.get("turn") and answer.get("status") == "OK")


def every_turn_ends_or_waits(history: History) -> Finding:
    """Falsified by an acknowledged turn that, once the faults are healed, neither ended, nor waits in a declared state,
    nor stands in the queue behind one that waits.
    """
    finding = Finding()
    for turn in acknowledged_turns(history):
        finding.expect(*_rests(turn, history))
    return finding


def i15_clients_that_left_change_nothing(history: History) -> Finding:
    """Falsified by a turn whose client went away, and that neither ended nor waits."""
    finding = Finding()
    for turn in history.left:
        finding.expect(*_rests(turn, history))
    return finding


def i11_documents_equal_the_fold_of_the_log(history: History) -> Finding:
    """Falsified by what tests/checker finds: a document that is not the fold of its session's log."""
    return Finding(checked=len(history.logs), violations=list(history.unfit))


def is_at_rest(turn: Document, turns: Mapping[str, Document], head: Document) -> bool:
    """Returns True if the turn ended, waits for a person or client, or is queued behind one that waits."""
    if turn["state"] in ENDED | WAITING:
        return True
    active = turns.get(head.get("active_turn", ""))
    return turn["id"] in head.get("queue", ()) and active is not None and active["state"] in WAITING


def _rests(turn: str, history: History) -> tuple[bool, str]:
    document = history.turns.get(turn)
    if document is None:
        return False, f"turn {turn} is not there"
    rests = is_at_rest(document, history.turns, history.heads.get(document["session_id"], {}))
    return rests, f"{document['session_id']}: turn {turn} is still {document['state']}"
