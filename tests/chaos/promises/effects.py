"""Checks the effects of tools: I5, I12 and I14."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from tests.chaos import tools
from tests.chaos.effects import hash_of
from tests.chaos.history import Effect, Finding, History, Logged
from tests.chaos.services import offered
from turnkeeper.domain.approval import HASH_DIGITS
from turnkeeper.pb.v1 import event_pb2

_NOT_STARTED = event_pb2.RECONCILED_STATE_NOT_STARTED
_LEAVE = frozenset({event_pb2.APPROVAL_DECISION_APPROVE, event_pb2.APPROVAL_DECISION_RETRY})
"""The decisions that let a call start once."""
CLASSES: Mapping[str, str] = {**tools.CLASSES, **offered.CLASSES}
NEED_APPROVAL = tools.NEED_APPROVAL | offered.NEED_APPROVAL


def i5_an_irreversible_tool_starts_once(history: History) -> Finding:
    """Falsified by a start that no tool_started stands for, by one under another key than the ledger's, by more starts
    of an irreversible call than its approvals, or its policy, allow; and by one that needs an approval and had none
    before it. A start that the tool's own server refuses for good uses up nothing.
    """
    finding = Finding()
    for call, effects in _by_call(history).items():
        name = f"{effects[0].session}: {effects[0].tool} {call}"
        events = history.events_of_call.get(call, ())
        started = [event for event in events if event.kind == "tool_started"]
        finding.expect(
            len(effects) <= len(started),
            f"{name} took effect {len(effects)} times, and was STARTED {len(started)} times",
        )
        keys = {effect.key for effect in effects} | {event.event.tool_started.key for event in started}
        ledger = history.ledger.get(call, {}).get("key")
        finding.expect(keys == {ledger}, f"{name} ran under {sorted(keys)}, the ledger's key is {ledger}")
        if CLASSES[effects[0].tool] == "IRREVERSIBLE":
            _allowed(name, effects, events, finding)
    return finding


def _allowed(name: str, effects: Sequence[Effect], events: Sequence[Logged], finding: Finding) -> None:
    """Checks that each start, in the log and in the file, uses up one permission from before it."""
    given = leaves = 0 if effects[0].tool in NEED_APPROVAL else 1
    for event in events:
        if event.kind == "approval_decided" and event.event.approval_decided.decision in _LEAVE:
            leaves, given = leaves + 1, given + 1
        if event.kind == "tool_reconciled" and event.event.tool_reconciled.state == _NOT_STARTED:
            leaves += 1
        if event.kind == "tool_started":
            leaves -= 1
            finding.expect(leaves >= 0, f"{name} was STARTED ({event.sequence}) without leave")
    finding.expect(len(effects) <= given, f"{name} took effect {len(effects)} times, with leave for {given}")


def i12_nothing_starts_after_a_cancel(history: History) -> Finding:
    """Falsified by a tool_started between turn_cancelled and turn_retried of its turn, or by a start that a tool wrote
    down and that has no tool_started outside such a time. A call STARTED before the cancel counts as started, however
    late the tool itself began: its process may have been stopped in between (the residual of I5).
    """
    finding = Finding()
    in_time: Counter[str] = Counter()
    were_cancelled: set[str] = set()
    for log in history.logs.values():
        were_cancelled |= _starts_in_time(log, in_time, finding)
    for call, effects in _by_call(history).items():
        late = effects[0].turn in were_cancelled and len(effects) > in_time[call]
        if late:
            finding.violations.append(f"{effects[0].session}: {call} took effect after its turn was cancelled")
    return finding


def _starts_in_time(log: Sequence[Logged], in_time: Counter[str], finding: Finding) -> set[str]:
    """Counts the starts that no cancel forbids, by call; the turns that were cancelled at some time."""
    were_cancelled: set[str] = set()
    cancelled: set[str] = set()
    for event in log:
        match event.kind:
            case "turn_cancelled":
                finding.checked += 1
                cancelled.add(event.turn)
                were_cancelled.add(event.turn)
            case "turn_retried":
                cancelled.discard(event.turn)
            case "tool_started" if event.turn in cancelled:
                finding.violations.append(f"{event.session}: {event.sequence} starts a tool of a cancelled turn")
            case "tool_started":
                in_time[event.event.tool_started.tool_call_id] += 1
    return were_cancelled


_WITH_HASH = ("tool_called", "approval_requested", "approval_decided")


def i14_what_was_approved_is_what_ran(history: History) -> Finding:
    """Falsified by a tool that saw other arguments than the ledger holds, or by a hash that differs between the model's
    call, the question, the decision and the ledger, for the last round that was allowed.
    """
    finding = Finding()
    for effect in history.effects:
        name = f"{effect.session}: {effect.tool} {effect.call}"
        ledger = history.ledger.get(effect.call)
        if ledger is None:
            finding.expect(False, f"{name} is not in the ledger")
            continue
        expected = hash_of(json.loads(ledger["arguments_json"]))
        finding.expect(effect.arguments == expected, f"{name} ran with other arguments than the ledger's")
        hashes = _hashes(history.events_of_call.get(effect.call, ())) | {ledger["arguments_hash"][:HASH_DIGITS]}
        finding.expect(len(hashes) == 1, f"{name} has the hashes {sorted(hashes)}")
    return finding


def _hashes(events: Sequence[Logged]) -> set[str]:
    """Returns the hashes of the call's last round, or of the call without one; none has the part for a late result."""
    payloads = [getattr(event.event, event.kind) for event in events if event.kind in _WITH_HASH]
    rounds = [payload for payload in payloads if hasattr(payload, "round")] or payloads
    last = max((getattr(payload, "round", 0) for payload in rounds), default=0)
    return {payload.arguments_hash[:HASH_DIGITS] for payload in rounds if getattr(payload, "round", 0) == last}


def _by_call(history: History) -> Mapping[str, list[Effect]]:
    effects: dict[str, list[Effect]] = {}
    for effect in history.effects:
        effects.setdefault(effect.call, []).append(effect)
    return effects
