"""Sums up a history in figures, for the report of a run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tests.chaos import flood, tenants
from tests.chaos.history import Finding, History, Logged
from tests.chaos.promises.answers import MUTATIONS
from tests.chaos.promises.ends import WAITING, acknowledged_turns
from tests.chaos.promises.tenants import foreign_reads
from tests.chaos.services.offered import PYTHON, source_of
from turnkeeper.pb.v1 import event_pb2

MOST_SHOWN = 20
_NO_MAJORITY, _SERVER = "majority", "server-"
_SEEN_LATE = 1.2
"""Seconds after which the probe sees at the latest that a gap without writes is over: its timeout, and its pause."""
_SHARES = (("p50", 0.5), ("p99", 0.99))
_UNKNOWN, _OUTCOME = event_pb2.TOOL_OUTCOME_UNKNOWN, event_pb2.APPROVAL_KIND_OUTCOME


def summary(history: History, findings: Mapping[str, Finding]) -> dict[str, Any]:
    """Returns the figures; those of calls and turns are the users'. `takeover_seconds` is empty without faults."""
    users = replace(history, tries=[call for call in history.tries if call.request.get("client") != flood.CLIENT])
    events = [event for log in history.logs.values() for event in log]
    kinds = Counter(event.kind for event in events)
    acknowledged = acknowledged_turns(users)
    turns = [history.turns[turn] for turn in acknowledged if turn in history.turns]
    taken_over = takeovers(history)
    foreign = foreign_reads(history)
    return {
        "acks": sum(call.ok and call.rpc in MUTATIONS for call in users.tries),
        "turns": dict(sorted(Counter(turn["state"] for turn in turns).items())),
        "acknowledged_turns": len(acknowledged),
        "turns_of_floods": len(acknowledged_turns(history)) - len(acknowledged),
        "refusals": sum(call.answer.get("reason") == flood.REFUSED for call in history.tries),
        "sessions": len(history.logs),
        "ids_of_two_sessions": len(history.logs) - len({tenants.id_of(session) for session in history.logs}),
        "foreign_reads": foreign["answered"],
        "foreign_reads_tried": foreign["tried"],
        "foreign_reads_leaked": foreign["leaked"],
        "waiting": sum(turn["state"] in WAITING for turn in turns),
        "events": len(events),
        "decided_approvals": kinds["approval_decided"],
        "expired_approvals": kinds["approval_expired"],
        "effects": len(history.effects),
        "effects_by_source": dict(sorted(Counter(source_of(effect.tool) for effect in history.effects).items())),
        "effects_of_tool_servers": sum(source_of(effect.tool) != PYTHON for effect in history.effects),
        "effects_cut_off": sum(not effect.answered for effect in history.effects if source_of(effect.tool) != PYTHON),
        "reconciled": dict(
            sorted(Counter(_told(event) for event in events if event.kind == "tool_reconciled").items())
        ),
        "next_messages": len(history.next_messages),
        "takeovers": len(taken_over),
        "takeover_seconds": _quantiles(_takeover_times(history, taken_over)),
        "unknown_outcomes": _unknown(history),
        "longest_write_gap_seconds": round(_longest_gap(history), 2),
        "checked": {name: finding.checked for name, finding in findings.items()},
        "violations": {
            name: finding.violations[:MOST_SHOWN] for name, finding in findings.items() if finding.violations
        },
        "violations_by_promise": {name: len(finding.violations) for name, finding in findings.items()},
        "not_checked": [name for name, finding in findings.items() if not finding.checked],
    }


def takeovers(history: History) -> list[Logged]:
    """Returns the events at which a turn went on because its owner was lost; a hand-over at drain is none.

    Turns of floods do not count: no reader receives their events, so that none of them can be measured.
    """
    return [
        event
        for session, log in history.logs.items()
        if not tenants.id_of(session).startswith(flood.SESSIONS)
        for event in log
        if event.kind == "attempt_superseded"
        and event.event.attempt > event.event.attempt_superseded.superseded_attempt
    ]


def _told(event: Logged) -> str:
    """Returns what the tool's own server told of a call."""
    return event_pb2.ReconciledState.Name(event.event.tool_reconciled.state).removeprefix("RECONCILED_STATE_")


def _unknown(history: History) -> int:
    """Returns the number of tool calls whose outcome was unknown at some time."""
    unknown = set()
    for call, events in history.events_of_call.items():
        for event in events:
            payload = getattr(event.event, event.kind)
            if event.kind == "tool_returned" and payload.outcome == _UNKNOWN:
                unknown.add(call)
            if event.kind == "approval_requested" and payload.kind == _OUTCOME:
                unknown.add(call)
    return len(unknown)


def _takeover_times(history: History, taken_over: Sequence[Logged]) -> list[float]:
    """Returns the seconds from the fault that lost the owner to the new owner's first event, as clients received it.

    The owner of a turn is not recorded, so this is an upper bound: from the first fault of a server after the turn's
    last event before, or from the end of a gap without writes, if that is later. A fault of connections loses no owner.
    The probe sees the end of a gap a little late, so one that seems to end just after the new owner's event has ended
    with it. Turns without a reader are left out: the clocks of replicas, which wrote their times, are set wrong by up
    to an hour.
    """
    times: list[float] = []
    for event in taken_over:
        earlier = [other for other in history.events_of_turn[event.turn] if other.sequence < event.sequence]
        since, until = (history.first_seen.get((one.session, one.sequence)) for one in (earlier[-1], event))
        if since is None or until is None:
            continue
        lost = [
            fault.began
            for fault in history.faults
            if fault.kind.startswith(_SERVER) and since - 1 <= fault.began <= until
        ]
        healed = [
            min(fault.healed, until)
            for fault in history.faults
            if fault.target == _NO_MAJORITY and since <= fault.healed <= until + _SEEN_LATE
        ]
        if lost or healed:
            times.append(max(0.0, until - max([min(lost, default=since), *healed])))
    return times


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {name: round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 2) for name, share in _SHARES}


def _longest_gap(history: History) -> float:
    """Returns the longest time during the load in which no reader received a new event, over all sessions."""
    times = sorted(when for when in history.first_seen.values() if when <= history.until)
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)
