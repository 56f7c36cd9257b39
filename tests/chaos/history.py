"""The history of a run, as values: the records of clients and tools, and the database at its end."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from turnkeeper.pb.v1 import event_pb2

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One stored event. `wall`: the time by the clock of the replica that wrote it, in seconds."""

    session: str
    sequence: int
    kind: str
    turn: str
    fence: int
    hash: str
    wall: float
    event: event_pb2.Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One call as its client recorded it. `answer` is empty while no answer was recorded."""

    number: int
    rpc: str
    request: Document
    answer: Document

    @property
    def ok(self) -> bool:
        return bool(self.answer.get("status") == "OK")

    @property
    def session(self) -> str:
        """The session of the request, or else that of the answer."""
        return str(self.request.get("session") or self.answer.get("session", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A reader's streams, each from the last one's cursor. `items` are as `streams.item` made them, in order.

    `through`: the last number that the stream reported as delivered. With `request` it gets one turn's events.
    `leaked`: it was given a text of another tenant. `ends`: how each of its streams ended, and the error's message.
    """

    number: int
    session: str
    after: int
    request: str
    previews: bool
    through: int
    items: Sequence[Sequence[Any]]
    leaked: bool = False
    ends: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One start of a tool, as the tool recorded it. `attempt`: of the turn; `answered`: the tool came to its end."""

    tool: str
    key: str
    session: str
    turn: str
    call: str
    arguments: str
    wall: float
    attempt: int = 1
    answered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of the nemesis; wall times in seconds."""

    kind: str
    target: str
    began: float
    healed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The messages of one request that the model got."""

    messages: Sequence[Document]


@dataclass(frozen=True, kw_only=True)
class History:
    """A whole run. Logs and heads are by session, the other documents by their ids.

    Each session has its tenant before its id, as `tenants.key` writes it; both tenants have sessions of the same id.

    `first_seen`: when a client first received an event, wall seconds, by session and number. `unfit`: the differences
    that tests/checker finds. `until`: when clients began nothing new any more. `audit`: the records of
    decisions, by approval. `next_messages`: sessions that were written to after all faults, and the ends of the turns.
    """

    logs: Mapping[str, Sequence[Logged]] = field(default_factory=dict)
    heads: Mapping[str, Document] = field(default_factory=dict)
    turns: Mapping[str, Document] = field(default_factory=dict)
    ledger: Mapping[str, Document] = field(default_factory=dict)
    approvals: Mapping[str, Document] = field(default_factory=dict)
    audit: Mapping[str, Sequence[Document]] = field(default_factory=dict)
    tries: Sequence[Try] = ()
    left: Sequence[str] = ()
    chains: Sequence[Chain] = ()
    effects: Sequence[Effect] = ()
    next_messages: Sequence[Document] = ()
    faults: Sequence[Fault] = ()
    prompts: Sequence[Prompt] = ()
    first_seen: Mapping[tuple[str, int], float] = field(default_factory=dict)
    until: float = math.inf
    unfit: Sequence[str] = ()

    @cached_property
    def events_of_turn(self) -> Mapping[str, Sequence[Logged]]:
        events: dict[str, list[Logged]] = {}
        for log in self.logs.values():
            for event in log:
                events.setdefault(event.turn, []).append(event)
        return events

    @cached_property
    def events_of_call(self) -> Mapping[str, Sequence[Logged]]:
        """The events of each tool call, its approvals included."""
        events: dict[str, list[Logged]] = {}
        for log in self.logs.values():
            for event in log:
                if call := getattr(getattr(event.event, event.kind), "tool_call_id", ""):
                    events.setdefault(call, []).append(event)
        return events

    @cached_property
    def messages(self) -> Mapping[str, str]:
        """The user's message of each turn."""
        received = (event for log in self.logs.values() for event in log if event.kind == "message_received")
        return {event.turn: text_of(event.event.message_received.content) for event in received}

    def at(self, session: str, sequence: int) -> Logged | None:
        """Returns the session's event of this number, or None."""
        return self._by_number.get((session, sequence))

    @cached_property
    def _by_number(self) -> Mapping[tuple[str, int], Logged]:
        return {(session, event.sequence): event for session, log in self.logs.items() for event in log}


@dataclass(slots=True)
class Finding:
    """The result of one promise: the number of checks, and a line for each violation."""

    checked: int = 0
    violations: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Counts a check, and records a violation if it does not hold."""
        self.checked += 1
        if not holds:
            self.violations.append(otherwise)


def text_of(content: Any) -> str:
    """Returns the text of a message's parts."""
    return "".join(part.text for part in content)
