"""What became of approvals: I6 and I7."""

from collections.abc import Mapping, Sequence

from tests.chaos.history import Finding, History, Logged, Try
from turnkeeper.pb.v1 import event_pb2

_ENDS: Mapping[str, str] = {
    "approval_decided": "decided",
    "approval_expired": "EXPIRED",
    "approval_withdrawn": "WITHDRAWN",
}
_DECIDED = frozenset({"APPROVED", "REJECTED"})
_STATES = {event_pb2.APPROVAL_DECISION_APPROVE: "APPROVED", event_pb2.APPROVAL_DECISION_REJECT: "REJECTED"}


def i6_an_approval_is_left_once(history: History) -> Finding:
    """Falsified by an approval that the log ends twice, or never while its document says that it ended, or otherwise
    than its document; by two acknowledged decisions of which one says yes and the other no.
    """
    found = Finding()
    ends = _ends(history)
    for name, approval in history.approvals.items():
        said = [_state(event) for event in ends.get(name, ())]
        wanted = [] if approval["state"] == "PENDING" else [approval["state"]]
        agree = len(said) == len(wanted) and all(
            each == state or (each == "decided" and state in _DECIDED) for each, state in zip(said, wanted, strict=True)
        )
        found.expect(agree, f"{approval['session_id']}: approval {name} is {approval['state']}, its log says {said}")
    for name in ends.keys() - history.approvals.keys():
        found.expect(False, f"approval {name} is in the log, and there is no document")
    for name, tries in _decisions(history).items():
        decided = {each.asked["decision"] for each in tries if each.ok}
        found.expect(len(decided) <= 1, f"approval {name}: the decisions {sorted(decided)} were both acknowledged")
    return found


def i7_expired_is_not_decided(history: History) -> Finding:
    """Falsified by an approval with both a decision and an expiry in its log, by an acknowledged decision on one that
    expired, or by a decider who was told APPROVAL_EXPIRED of one that did not.
    """
    found = Finding()
    tries = _decisions(history)
    for name, events in _ends(history).items():
        said = {event.kind for event in events}
        both = {"approval_decided", "approval_expired"} <= said
        found.expect(not both, f"approval {name} was decided, and expired")
        if "approval_expired" in said:
            accepted = [each.number for each in tries.get(name, ()) if each.ok]
            found.expect(not accepted, f"approval {name} expired, and calls {accepted} were acknowledged")
        else:
            told = [each.number for each in tries.get(name, ()) if each.told.get("reason") == "APPROVAL_EXPIRED"]
            found.expect(not told, f"approval {name} did not expire, and calls {told} were told so")
    return found


def _ends(history: History) -> Mapping[str, Sequence[Logged]]:
    """The events that end an approval, by its id."""
    found: dict[str, list[Logged]] = {}
    for log in history.logs.values():
        for event in log:
            if event.kind in _ENDS:
                found.setdefault(getattr(event.event, event.kind).approval_id, []).append(event)
    return found


def _state(event: Logged) -> str:
    if event.kind != "approval_decided":
        return _ENDS[event.kind]
    return _STATES.get(event.event.approval_decided.decision, "decided")


def _decisions(history: History) -> Mapping[str, list[Try]]:
    found: dict[str, list[Try]] = {}
    for each in history.tries:
        if each.rpc == "DecideApproval":
            found.setdefault(str(each.asked["approval"]), []).append(each)
    return found
