"""Checks approvals: I6 and I7."""

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
    """Falsified by an approval that the log ends twice, never though its document has ended, or otherwise than its
    document; by two acknowledged decisions of which one approves and the other rejects.
    """
    finding = Finding()
    ends = _ends(history)
    for name, approval in history.approvals.items():
        logged = [_state(event) for event in ends.get(name, ())]
        expected = [] if approval["state"] == "PENDING" else [approval["state"]]
        agree = len(logged) == len(expected) and all(
            logged_state == state or (logged_state == "decided" and state in _DECIDED)
            for logged_state, state in zip(logged, expected, strict=True)
        )
        finding.expect(agree, f"{approval['session_id']}: approval {name} is {approval['state']}, its log has {logged}")
    for name in ends.keys() - history.approvals.keys():
        finding.expect(False, f"approval {name} is in the log, and there is no document")
    for name, tries in _decisions(history).items():
        decided = {call.request["decision"] for call in tries if call.ok and not _is_vote(call, history)}
        finding.expect(len(decided) <= 1, f"approval {name}: the decisions {sorted(decided)} were both acknowledged")
    return finding


def i7_expired_is_not_decided(history: History) -> Finding:
    """Falsified by an approval with both a decision and an expiry in its log, by an acknowledged decision on one that
    expired, or by a decision refused with APPROVAL_EXPIRED though the approval did not expire.
    """
    finding = Finding()
    tries = _decisions(history)
    for name, events in _ends(history).items():
        kinds = {event.kind for event in events}
        both = {"approval_decided", "approval_expired"} <= kinds
        finding.expect(not both, f"approval {name} was decided, and expired")
        if "approval_expired" in kinds:
            accepted = [call.number for call in tries.get(name, ()) if call.ok and not _is_vote(call, history)]
            finding.expect(not accepted, f"approval {name} expired, and calls {accepted} were acknowledged")
        else:
            expired = [call.number for call in tries.get(name, ()) if call.answer.get("reason") == "APPROVAL_EXPIRED"]
            finding.expect(not expired, f"approval {name} did not expire, and calls {expired} were refused as expired")
    return finding


def _is_vote(call: Try, history: History) -> bool:
    """Returns True if the acknowledged call is a vote that did not decide the approval: others may decide otherwise."""
    approval = history.approvals.get(str(call.request["approval"]))
    event = history.at(approval["session_id"], call.answer.get("sequence", 0)) if approval is not None else None
    return event is not None and event.kind == "approval_voted"


def _ends(history: History) -> Mapping[str, Sequence[Logged]]:
    """Returns the events that end each approval, by its id."""
    ends: dict[str, list[Logged]] = {}
    for log in history.logs.values():
        for event in log:
            if event.kind in _ENDS:
                ends.setdefault(getattr(event.event, event.kind).approval_id, []).append(event)
    return ends


def _state(event: Logged) -> str:
    if event.kind != "approval_decided":
        return _ENDS[event.kind]
    return _STATES.get(event.event.approval_decided.decision, "decided")


def _decisions(history: History) -> Mapping[str, list[Try]]:
    decisions: dict[str, list[Try]] = {}
    for call in history.tries:
        if call.rpc == "DecideApproval":
            decisions.setdefault(str(call.request["approval"]), []).append(call)
    return decisions
