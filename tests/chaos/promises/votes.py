"""Checks who decided: votes are those of people who may decide, enough of them, and the same in every record."""

from collections import Counter
from collections.abc import Mapping, Sequence

from tests.chaos import tenants
from tests.chaos.history import Document, Finding, History, Logged
from turnkeeper.pb.v1 import event_pb2

_RUNS = (event_pb2.APPROVAL_DECISION_APPROVE, event_pb2.APPROVAL_DECISION_RETRY)


def votes_are_of_those_who_may(history: History) -> Finding:
    """Falsified by a vote of who caused the call, or with the authority of a person whom the rule does not name; by a
    call that runs without the votes of enough distinct people; by a vote stored after the expiry; by votes that differ
    between events and audit trail.
    """
    finding = Finding()
    votes = _votes(history)
    for name, approval in history.approvals.items():
        events = votes.get(name, ())
        for event in events:
            _allowed(approval, event, finding)
        _in_time(name, approval, finding)
        if approval["state"] == "APPROVED":
            _enough(name, approval, events, finding)
        finding.expect(
            _voters(events) == _recorded(history.audit.get(name, ())),
            f"approval {name}: the log has the votes {_voters(events)}, the audit trail {history.audit.get(name)}",
        )
    return finding


def _allowed(approval: Document, event: Logged, finding: Finding) -> None:
    voted = event.event.approval_voted
    people = {voted.person, voted.authority}
    where = f"{event.session}: approval {voted.approval_id} ({event.sequence})"
    finding.expect(approval["requester"] not in people, f"{where} has a vote of its requester, by {sorted(people)}")
    groups = set(approval.get("approvers", {}).get("groups", ()))
    named = not groups or voted.authority in tenants.MEMBERS
    finding.expect(named, f"{where} has a vote with the authority of {voted.authority}, who is not of {sorted(groups)}")


def _enough(name: str, approval: Document, events: Sequence[Logged], finding: Finding) -> None:
    """Checks that the last votes for the decision are those of enough people, of whom none counts twice."""
    if approval.get("decision") == "MARK_DONE":
        return
    shown = events[-1].event.approval_voted.arguments_hash if events else ""
    votes = (event.event.approval_voted for event in events)
    last = {vote.person: vote for vote in votes if vote.arguments_hash == shown}
    running = [vote for vote in last.values() if vote.decision in _RUNS]
    people = Counter(person for vote in running for person in {vote.person, vote.authority})
    needed = approval.get("approvers", {}).get("k", 1)
    finding.expect(len(running) >= needed, f"approval {name} runs with {len(running)} votes, and needs {needed}")
    finding.expect(max(people.values(), default=0) <= 1, f"approval {name} counts people twice: {dict(people)}")


def _in_time(name: str, approval: Document, finding: Finding) -> None:
    """Checks the stored votes. The clock of a replica may be wrong by an hour: the database's order counts."""
    is_expired, end = approval["state"] == "EXPIRED", approval.get("sequence", 0)
    late = [vote for vote in approval.get("votes", ()) if is_expired and vote["sequence"] > end]
    finding.expect(not late, f"approval {name} expired ({end}), and has later votes {late}")


def _votes(history: History) -> Mapping[str, Sequence[Logged]]:
    votes: dict[str, list[Logged]] = {}
    for log in history.logs.values():
        for event in log:
            if event.kind == "approval_voted":
                votes.setdefault(event.event.approval_voted.approval_id, []).append(event)
    return votes


def _voters(events: Sequence[Logged]) -> list[tuple[str, str]]:
    return sorted((event.event.approval_voted.person, event.event.approval_voted.authority) for event in events)


def _recorded(records: Sequence[Document]) -> list[tuple[str, str]]:
    """Returns who voted by the audit trail; an answer that came too late is on record, and is no vote."""
    details = [record["details"] for record in records if "votes" in record["details"]]
    return sorted((detail["decided_by"], detail.get("authority", detail["decided_by"])) for detail in details)
