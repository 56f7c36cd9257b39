"""Folds the votes on an approval from their events."""

from collections.abc import Mapping
from typing import Any

from tests.checker.values import BrokenLog, FoldedApproval
from turnkeeper.pb.v1 import event_pb2

COMPARED = ("person", "authority", "through", "decision", "arguments_hash", "reason", "sequence")
"""The fields of a stored vote that its event has, too."""
_LETS_RUN = ("APPROVE", "RETRY")


def add_vote(approval: FoldedApproval, event: event_pb2.Event, *, causers: set[str]) -> None:
    """Adds a vote, in place of those that it takes back, and of those by whom the call was caused meanwhile.

    Raises BrokenLog if a person would count twice.
    """
    voted = event.approval_voted
    vote: dict[str, object] = {name: getattr(voted, name) for name in COMPARED if name not in ("decision", "sequence")}
    decision = event_pb2.ApprovalDecision.Name(voted.decision).removeprefix("APPROVAL_DECISION_")
    vote |= {"decision": decision, "sequence": event.sequence}
    if approval.state != "PENDING" or voted.round != approval.round:
        raise BrokenLog(f"a vote ({event.sequence}) on approval {voted.approval_id}, which is {approval.state}")
    kept = [earlier for earlier in approval.votes if earlier["arguments_hash"] == voted.arguments_hash]
    kept = [earlier for earlier in kept if not _takes_back(earlier, vote)]
    people = {voted.person, voted.authority}
    if approval.exclude_requester:
        kept = [earlier for earlier in kept if not {earlier["person"], earlier["authority"]} & causers]
    if any(people & {earlier["person"], earlier["authority"]} for earlier in kept):
        raise BrokenLog(f"{sorted(people)} would count twice in approval {voted.approval_id} ({event.sequence})")
    approval.votes = [*kept, vote]


def check_decided(approval: FoldedApproval, event: event_pb2.Event) -> None:
    """Raises BrokenLog if an approval with votes was not decided by the last one, right before this event."""
    decided = event.approval_decided
    if not approval.votes:
        return  # an older version decided it
    last = approval.votes[-1]
    if (last["person"], last["decision"], last["sequence"]) != (
        decided.decided_by,
        event_pb2.ApprovalDecision.Name(decided.decision).removeprefix("APPROVAL_DECISION_"),
        event.sequence - 1,
    ):
        raise BrokenLog(f"approval {decided.approval_id} was decided ({event.sequence}), but not by its last vote")


def stored_votes(document: Mapping[str, Any]) -> list[dict[str, object]]:
    """Returns the votes of a stored approval, in the form of the folded ones; none of an older version."""
    return [{name: vote[name] for name in COMPARED} for vote in document.get("votes", [])]


def _takes_back(earlier: Mapping[str, object], vote: Mapping[str, object]) -> bool:
    is_ones_own = vote["person"] in (earlier["person"], earlier["authority"])
    return is_ones_own and earlier["decision"] in _LETS_RUN and vote["decision"] not in _LETS_RUN
