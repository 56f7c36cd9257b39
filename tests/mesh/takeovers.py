"""Turns that were taken over from lost replicas, by the log: how long it took, and what their owners were doing."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pymongo.asynchronous.database import AsyncDatabase

from tests.chaos.history import Logged
from tests.chaos.reading import logs_of
from tests.mesh.findings import Fault

TOOL: Final = "tool"
MODEL: Final = "model"
OTHER: Final = "other"
_ENDS: Final = frozenset({"turn_completed", "turn_failed", "turn_cancelled"})
_SUPERSEDED: Final = "attempt_superseded"


@dataclass(frozen=True, slots=True)
class Takeover:
    """One turn that was taken over. `during`: what its owner was in the middle of; `seconds`: since it was lost."""

    kind: str
    turn: str
    during: str
    seconds: float


async def owned_by(database: AsyncDatabase[dict[str, Any]], replica: str) -> Mapping[str, int]:
    """Returns the turns that the replica owns now, each with its fence."""
    owned = {"owner": replica, "lease_until": {"$ne": None}, "active_turn": {"$gt": ""}}
    heads = await database.heads.find(owned, {"active_turn": 1, "fence": 1}).to_list()
    return {head["active_turn"]: head["fence"] for head in heads}


async def at_work(database: AsyncDatabase[dict[str, Any]], turns: Iterable[str]) -> Mapping[str, int]:
    """Returns how many of these turns are in the middle of what now: TOOL, MODEL or OTHER."""
    heads = await database.heads.find({"active_turn": {"$in": list(turns)}}, {"tenant": 1, "session_id": 1}).to_list()
    of_sessions = [{"tenant": head["tenant"], "session_id": head["session_id"]} for head in heads]
    if not of_sessions:
        return {}
    events = await database.events.find({"$or": of_sessions}, sort=[("seq", 1)]).to_list()
    of_turn = _by_turn(logs_of(events))
    return Counter(during(of_turn.get(turn, ())) for turn in turns)


async def still_owned(database: AsyncDatabase[dict[str, Any]], turns: Mapping[str, int]) -> int:
    """Returns how many of these turns still have the same owner, by their fences."""
    heads = await database.heads.find({"active_turn": {"$in": list(turns)}}, {"active_turn": 1, "fence": 1}).to_list()
    return sum(head["fence"] == turns[head["active_turn"]] for head in heads)


def takeovers(logs: Mapping[str, Sequence[Logged]], faults: Iterable[Fault]) -> list[Takeover]:
    """Returns a take-over for each turn that a fault took from its owner, unless the turn had just ended."""
    taken_over: list[Takeover] = []
    of_turn = _by_turn(logs)
    for fault in faults:
        for turn in sorted(fault.turns):
            events = of_turn.get(turn, [])
            after = [event for event in events if event.kind == _SUPERSEDED and event.wall >= fault.began]
            if after:
                before = [event for event in events if event.sequence < after[0].sequence]
                taken_over.append(Takeover(fault.kind, turn, during(before), after[0].wall - fault.began))
    return taken_over


def _by_turn(logs: Mapping[str, Sequence[Logged]]) -> Mapping[str, Sequence[Logged]]:
    """Returns the events of each turn, in their order."""
    of_turn: dict[str, list[Logged]] = {}
    for log in logs.values():
        for event in log:
            of_turn.setdefault(event.turn, []).append(event)
    return of_turn


def never_taken_over(logs: Mapping[str, Sequence[Logged]], faults: Iterable[Fault]) -> list[str]:
    """Returns the turns of lost owners that were neither taken over nor ended."""
    lost = {turn for fault in faults for turn in fault.turns}
    settled = {event.turn for log in logs.values() for event in log if event.kind == _SUPERSEDED or event.kind in _ENDS}
    return sorted(lost - settled)


def superseded_between(logs: Mapping[str, Sequence[Logged]], began: float, ended: float) -> int:
    """Returns how many attempts were superseded between two moments, in wall seconds."""
    events = (event for log in logs.values() for event in log if event.kind == _SUPERSEDED)
    return sum(began <= event.wall <= ended for event in events)


def during(events: Sequence[Logged]) -> str:
    """Returns what the turn's owner was in the middle of after these events of the turn."""
    last = next((event.kind for event in reversed(events) if event.kind in _STEPS), "")
    return _STEPS.get(last, OTHER)


_STEPS: Final = {
    "turn_started": MODEL,
    "tool_returned": MODEL,
    "message_completed": OTHER,
    "tool_called": OTHER,
    "tool_started": TOOL,
}
"""What follows each of these events."""
