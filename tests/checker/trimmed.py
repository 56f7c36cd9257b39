"""Checks a session whose log was trimmed: without a fold, all that needs only the kept events.

The numbering above `compacted_to`, the kinds below it, the fences' order, the head against the last event, and that
every turn, call and approval that the rest of the log names has its document, in a state which that event allows.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from turnkeeper.domain.fork import COPIED
from turnkeeper.pb.v1 import event_pb2

Document = Mapping[str, Any]
_ENDS = {"turn_completed": "COMPLETED", "turn_failed": "FAILED", "turn_cancelled": "CANCELLED"}


def trimmed(
    head: Document, session: Document, events: list[Document], members: Mapping[str, list[Document]]
) -> Iterator[str]:
    """Yields a line for each difference."""
    below, through = head["compacted_to"], head["trimmed_to"]
    kept = [event["seq"] for event in events if event["seq"] > below]
    if kept != list(range(below + 1, head["last_seq"] + 1)):
        yield f"trimmed to {below}, it holds {kept} up to {head['last_seq']}"
    if through > below:
        yield f"deleted up to {through}, and recorded as trimmed to {below}"
    yield from _stored(events, through=through, fence=head["fence"])
    yield from _named(events, members)
    turns = {turn["id"]: turn for turn in members["turns"]}
    going = [turn for turn in (head["active_turn"], *head["queue"]) if turn]
    if open_turns := {turn["id"] for turn in turns.values() if turn["end_time"] is None} ^ set(going):
        yield f"turns {sorted(open_turns)} have not ended and are not on the head, or the reverse"
    if (head.get("suspended", False), head.get("deleted_at") is not None) != (
        session["state"] == "SUSPENDED",
        session.get("delete_time") is not None,
    ):
        yield "head and session differ on whether it is suspended or deleted"


def _stored(events: list[Document], *, through: int, fence: int) -> Iterator[str]:
    last, number = 0, 0
    for event in events:
        payload = event_pb2.Event.FromString(event["payload"])
        if (event["seq"], event["kind"]) != (payload.sequence, payload.WhichOneof("payload")) or event["seq"] <= number:
            yield f"event {event['seq']} after {number}: {event['kind']}, its payload is {payload.sequence}"
        if event["seq"] <= through and event["kind"] not in COPIED:
            yield f"event {event['seq']}, a {event['kind']}, was to be deleted"
        if not last <= event["fence"] <= fence:
            yield f"event {event['seq']} has the fence {event['fence']}, after {last}; the head's is {fence}"
        last, number = event["fence"], event["seq"]


def _named(events: list[Document], members: Mapping[str, list[Document]]) -> Iterator[str]:
    turns = {turn["id"]: turn for turn in members["turns"]}
    calls = {call["id"] for call in members["tool_calls"]}
    ends: dict[str, str] = {}
    for event in events:
        payload = event_pb2.Event.FromString(event["payload"])
        if event["kind"] in _ENDS or event["kind"] == "turn_retried":
            ends[event["turn_id"]] = _ENDS.get(event["kind"], "")
        if event["turn_id"] and event["turn_id"] not in turns:
            yield f"event {event['seq']} names turn {event['turn_id']}, which is not there"
        if event["kind"] in ("tool_called", "tool_returned"):
            call = getattr(payload, event["kind"]).tool_call_id
            if call not in calls:
                yield f"event {event['seq']} names call {call}, which is not there"
    for turn_id, state in ends.items():
        if state and turn_id in turns and turns[turn_id]["state"] != state:
            yield f"turn {turn_id} is {turns[turn_id]['state']}, by its last event {state}"
