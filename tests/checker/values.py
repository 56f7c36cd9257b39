"""The values of a folded log, with the names of the session's documents."""

from dataclasses import dataclass, field
from datetime import timedelta

from turnkeeper.pb.v1 import event_pb2, message_pb2

USAGE = ("input_tokens", "output_tokens", "model_calls", "tool_calls")

MOST_SUM = 2**63 - 1
"""A sum of tokens stays there: no more can be stored."""

Usage = dict[str, int]


class BrokenLog(Exception):
    """An event that no rule allows."""


@dataclass(slots=True)
class FoldedCall:
    """One tool call. `state` is that of the ledger. `requested`: a client runs it; its result is event `sequence`."""

    turn_id: str
    tool: str
    arguments_json: str
    arguments_hash: str
    irreversible: bool
    state: str
    key: str = ""
    requested: bool = False
    sequence: int = 0
    outcome: str = ""
    rounds: int = 0
    unsettled: bool = False
    edited_in: str = ""
    """The approval whose edit changed the arguments."""
    done: bool = False
    """A decision marked the call as done."""

    @property
    def may_start_again(self) -> bool:
        """True after a start that may be repeated: if its owner is lost, the call is ready again without an event."""
        return self.state == "STARTED" and not self.irreversible


@dataclass(slots=True)
class FoldedApproval:
    """One approval. `sequence` is of the event that decided or ended it, 0 while it is pending or was withdrawn."""

    turn_id: str
    tool_call_id: str
    round: int
    arguments_hash: str
    kind: str
    unknown_tool_call_ids: list[str]
    exclude_requester: bool = True
    state: str = "PENDING"
    decision: str | None = None
    replaced_by: str = ""
    decided_by: str = ""
    reason: str = ""
    sequence: int = 0
    votes: list[dict[str, object]] = field(default_factory=list)
    remembered_from: str = ""
    extension_sequence: int = 0
    is_expiring: bool = False
    whole_ttl: timedelta | None = None
    """The time to decide in all, after an extension; None before."""


@dataclass(slots=True)
class FoldedTurn:
    """One turn. `end` is its final state, empty before; `backing_off` is between two tries that are far apart;
    `retried` until an owner has done something since RetryTurn."""

    first_sequence: int
    message_id: str
    principal: str
    caused_by: list[str] = field(default_factory=list)
    attempt: int = 0
    started: bool = False
    end: str = ""
    backing_off: bool = False
    retried: bool = False
    iterations: int = 0
    answer: str = ""
    usage: Usage = field(default_factory=lambda: dict.fromkeys(USAGE, 0))
    stop_reason: str = ""
    error_code: int = 0
    message_ids: set[str] = field(default_factory=set)

    @property
    def causers(self) -> set[str]:
        return {self.principal, *self.caused_by}

    def add_causers(self, *people: str) -> None:
        known = {"", *self.causers}
        self.caused_by += dict.fromkeys(person for person in people if person not in known)

    def add_usage(self, used: Usage) -> None:
        self.usage = {name: min(self.usage[name] + used.get(name, 0), MOST_SUM) for name in USAGE}


@dataclass(frozen=True, slots=True)
class Standing:
    """Which turn began last in the conversation, and whether it completed; `before` that turn began."""

    turn_id: str = ""
    completed: bool = False
    before: "Standing | None" = None


@dataclass(slots=True)
class Folded:
    """A session."""

    state: str = ""
    resumes_as: str = ""
    deleted: bool = False
    changed: set[str] = field(default_factory=set)
    """The fields that updates named; the log does not have their new values."""
    agent: str = ""
    agent_version: str = ""
    owner: str = ""
    title: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=lambda: dict.fromkeys(USAGE, 0))
    last_seq: int = 0
    active: str = ""
    queue: list[str] = field(default_factory=list)
    turns: dict[str, FoldedTurn] = field(default_factory=dict)
    calls: dict[str, FoldedCall] = field(default_factory=dict)
    approvals: dict[str, FoldedApproval] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    """Calls with an unknown outcome, newest first."""
    remembered: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Remembered decisions, oldest first: by the approval, what they are bound to and how many uses are left."""
    restored: dict[str, object] | None = None
    copied_through: int = 0
    """The last event that is a copy of another session's log, without approvals."""
    standing: Standing = field(default_factory=Standing)
    places: list[Standing] = field(default_factory=list)
    together: list[tuple[event_pb2.Event, FoldedApproval]] = field(default_factory=list)
    """The approvals of outcomes that were requested last, in one changeset."""
    _arrived: str = ""

    def open_calls(self, turn_id: str) -> list[FoldedCall]:
        return [call for call in self.calls.values() if call.turn_id == turn_id and call.state != "RETURNED"]

    def unknown_of(self, tool: str, *, but: str) -> list[str]:
        return [call_id for call_id in self.unknown if self.calls[call_id].tool == tool and call_id != but]

    def awaited(self, turn_id: str) -> set[tuple[str, str]]:
        """Returns the approvals and calls that a waiting turn waits for."""
        approval_ids = {approval.tool_call_id: key for key, approval in self.pending(turn_id).items()}
        calls = self.calls.items()
        return {
            (approval_ids.get(key, ""), key)
            for key, call in calls
            if call.turn_id == turn_id and call.state != "RETURNED"
        }

    def pending(self, turn_id: str) -> dict[str, FoldedApproval]:
        approvals = self.approvals.items()
        return {
            key: approval for key, approval in approvals if approval.turn_id == turn_id and approval.state == "PENDING"
        }

    def states_of(self, turn_id: str) -> set[str]:
        """Returns the states that the turn's document may have: a claim leaves no event, so a waiting turn may run."""
        turn = self.turns[turn_id]
        if turn.end:
            return {turn.end}
        if turn_id != self.active:
            return {"PENDING"}
        open_calls = self.open_calls(turn_id)
        states = {call.state for call in open_calls}
        if states and states <= {"AWAITING", "REQUESTED", "UNKNOWN"}:
            waits = "OUTCOME" if "UNKNOWN" in states else "APPROVAL" if "AWAITING" in states else "TOOL"
            return {f"AWAITING_{waits}", "RUNNING"}
        if turn.backing_off:
            return {"BACKING_OFF", "RUNNING"}
        return {"RUNNING"} if turn.started and not turn.retried else {"PENDING", "RUNNING"}

    def turn_of(self, event: event_pb2.Event) -> FoldedTurn:
        """Returns the event's turn. Raises BrokenLog if it is missing or has ended."""
        turn = self.turns.get(event.turn_id)
        if turn is None or turn.end:
            raise BrokenLog(
                f"{event.WhichOneof('payload')} ({event.sequence}) of a turn that is not there or has ended"
            )
        if event.attempt < turn.attempt:
            raise BrokenLog(f"event {event.sequence} of attempt {event.attempt} after {turn.attempt}")
        turn.attempt = event.attempt
        return turn

    def arrive(self, turn_id: str) -> None:
        self._arrived = turn_id
        self.restored = None
        self.standing = Standing(turn_id, before=self.standing)
        if not self.active:
            self.active, self._arrived = turn_id, ""

    def enqueue(self, turn_id: str, position: int) -> None:
        self.queue.insert(position - 1, turn_id)
        self.standing = self.standing.before or Standing()
        self._arrived = ""

    def begin(self, turn_id: str) -> None:
        """Makes a turn that waited the conversation's last; one that began with its message is that already."""
        if self.standing.turn_id != turn_id:
            self.standing = Standing(turn_id, before=self.standing)

    def end_turn(self, event: event_pb2.Event, state: str, usage: message_pb2.Usage) -> FoldedTurn:
        turn = self.turn_of(event)
        turn.end, turn.backing_off = state, False
        if usage_of(usage) != turn.usage:
            raise BrokenLog(
                f"event {event.sequence} has the usage {usage_of(usage)}, the events before it {turn.usage}"
            )
        self.usage = {name: min(self.usage[name] + turn.usage[name], MOST_SUM) for name in USAGE}
        if still := self.open_calls(event.turn_id):
            raise BrokenLog(f"turn {event.turn_id} ended with open calls of {[call.tool for call in still]}")
        if self.pending(event.turn_id):
            raise BrokenLog(f"turn {event.turn_id} ended with pending approvals")
        if event.turn_id == self.active:
            self.active, self._arrived = self._arrived or (self.queue.pop(0) if self.queue else ""), ""
        else:
            self.queue.remove(event.turn_id)
        return turn

    def take_back(self, turn: FoldedTurn) -> None:
        """Takes the usage of a retried turn back: it counts when the turn ends."""
        self.usage = {name: self.usage[name] - turn.usage[name] for name in USAGE}


def usage_of(usage: message_pb2.Usage) -> Usage:
    return {name: getattr(usage, name) for name in USAGE}
