"""Judges raced approvals, by the promises of `make chaos` and by three more, and counts what came out."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from tests.chaos import checker
from tests.chaos.approvals.racers import MAY, MAY_NOT
from tests.chaos.history import Document, Finding, History, Logged, Try

NEAR: Final = 1.0
"""Seconds around an expiry."""
TRUNCATED: Final = 0.002
"""Seconds: stored times are whole milliseconds."""
_ENDS: Final = frozenset({"approval_decided", "approval_expired", "approval_withdrawn"})


def each_on_its_side_of_the_expiry(history: History) -> Finding:
    """Falsified by a vote or a decision that is stored with a time after the expiry, by an expiry before it, by an
    acknowledged vote whose person had not sent it before the expiry, or by APPROVAL_EXPIRED before it. All programs
    of a run have the clock of one machine.
    """
    finding = Finding()
    ends = ends_of(history)
    for name, approval in history.approvals.items():
        expiry = _seconds(approval["expire_time"])
        late = [vote for vote in approval["votes"] if _seconds(vote["at"]) >= expiry]
        finding.expect(not late, f"approval {name} has votes from after its expiry {expiry}: {late}")
        for end in ends.get(name, ()):
            if end.kind == "approval_decided":
                finding.expect(end.wall < expiry, f"approval {name} was decided {end.wall - expiry:.3f} s too late")
            if end.kind == "approval_expired":
                early = expiry - end.wall
                finding.expect(early <= TRUNCATED, f"approval {name} expired {early:.3f} s too early")
    for (name, person), tries in votes_tried(history).items():
        if name not in history.approvals:
            continue
        expiry = _seconds(history.approvals[name]["expire_time"])
        if any(call.ok for call in tries):
            sent = min(call.request["wall"] for call in tries)
            finding.expect(sent < expiry, f"approval {name}: {person} voted {sent - expiry:.3f} s after the expiry")
        answered = [call.answer["wall"] for call in tries if call.answer.get("reason") == "APPROVAL_EXPIRED"]
        finding.expect(
            min(answered, default=expiry) >= expiry - TRUNCATED,
            f"approval {name}: {person} was told too early, at {answered}",
        )
    return finding


def who_may_not_decide_is_refused(history: History) -> Finding:
    """Falsified by an acknowledged decision of who caused the call, of who has that one's authority, or of who has
    no one's.
    """
    finding = Finding()
    for (name, person), tries in votes_tried(history).items():
        if person in MAY_NOT:
            finding.expect(
                not any(call.ok for call in tries), f"approval {name}: the vote of {person} was acknowledged"
            )
    return finding


def only_what_was_approved_ran(history: History) -> Finding:
    """Falsified by a tool that started without an approval of its call that is APPROVED."""
    finding = Finding()
    approved = {doc["tool_call_id"] for doc in history.approvals.values() if doc["state"] == "APPROVED"}
    for effect in history.effects:
        finding.expect(effect.call in approved, f"{effect.session}: {effect.tool} {effect.call} ran unapproved")
    return finding


NAMES: Final = ("I1", "I3", "I4", "I5", "I6", "I7", "I8", "I11", "I12", "I14", "defects", "turns", "votes")
"""The promises of `make chaos` that raced approvals can break."""
PROMISES: Final[Mapping[str, Callable[[History], Finding]]] = {
    **{name: checker.PROMISES[name] for name in NAMES},
    "expiry": each_on_its_side_of_the_expiry,
    "refusals": who_may_not_decide_is_refused,
    "unapproved": only_what_was_approved_ran,
}


def judge(history: History) -> Mapping[str, Finding]:
    """Checks every promise. Returns the findings by the promises' names."""
    return {name: promise(history) for name, promise in PROMISES.items()}


def figures(history: History) -> Mapping[str, Any]:
    """Returns what came out of the races."""
    raced = _raced(history)
    ends, tried = ends_of(history), votes_tried(history)
    outcomes = Counter(history.approvals[name]["state"] for name in raced)
    near: Counter[str] = Counter()
    for name in raced:
        expiry = _seconds(history.approvals[name]["expire_time"])
        near.update(end.kind for end in ends.get(name, ()) if abs(end.wall - expiry) <= NEAR)
    refused = Counter(
        (person, call.answer.get("reason", ""))
        for (name, person), tries in tried.items()
        for call in tries
        if person in MAY_NOT and name in raced and call.answer.get("reason")
    )
    return {
        "raced": len(raced),
        "approvals": len(history.approvals),
        "outcomes": dict(sorted(outcomes.items())),
        "decided_by_two_of_three": sum(_by_two(history.approvals[name]) for name in raced),
        "decided_within_a_second_of_the_expiry": near["approval_decided"],
        "expired_within_a_second_of_the_expiry": near["approval_expired"],
        "votes": sum(event.kind == "approval_voted" for log in history.logs.values() for event in log),
        "votes_of_a_delegate": sum(
            vote["person"] != vote["authority"] for doc in history.approvals.values() for vote in doc["votes"]
        ),
        "edited": sum(bool(doc.get("replaced_by")) for doc in history.approvals.values()),
        "decisions_tried": sum(map(len, tried.values())),
        "refused": {
            person: {reason: count for (who, reason), count in sorted(refused.items()) if who == person}
            for person in MAY_NOT
        },
        "effects": len(history.effects),
    }


def ends_of(history: History) -> Mapping[str, Sequence[Logged]]:
    """Returns the events that end each approval, by its id."""
    ends: dict[str, list[Logged]] = {}
    for log in history.logs.values():
        for event in log:
            if event.kind in _ENDS:
                ends.setdefault(getattr(event.event, event.kind).approval_id, []).append(event)
    return ends


def votes_tried(history: History) -> Mapping[tuple[str, str], Sequence[Try]]:
    """Returns each person's tries to decide an approval, by its id and the person.

    An edit that was acknowledged is a vote on the round that it opened, and may be repeated there.
    """
    tries: dict[tuple[str, str], list[Try]] = {}
    for call in history.tries:
        if call.rpc == "DecideApproval":
            approval = call.answer.get("approval") or call.request["approval"]
            tries.setdefault((str(approval), str(call.request["client"])), []).append(call)
    return tries


def _raced(history: History) -> frozenset[str]:
    """Returns the approvals that all who may not, and at least two who may, tried to decide."""
    people: dict[str, set[str]] = {}
    for name, person in votes_tried(history):
        people.setdefault(name, set()).add(person)
    return frozenset(
        name
        for name, tried in people.items()
        if name in history.approvals and tried >= set(MAY_NOT) and len(tried & set(MAY)) > 1
    )


def _by_two(approval: Document) -> bool:
    """Returns True if it was approved, and needed two persons for that."""
    return bool(approval["state"] == "APPROVED" and approval.get("approvers", {}).get("k", 1) > 1)


def _seconds(time: datetime) -> float:
    return time.replace(tzinfo=UTC).timestamp()
