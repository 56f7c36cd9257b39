"""What is known of a run, as values: what clients wrote down, what tools did, what the database holds in the end."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from turnkeeper.pb.v1 import event_pb2

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One stored event. `wall`: when the replica that wrote it thought it was, seconds."""

    sequence: int
    kind: str
    turn: str
    fence: int
    hash: str
    wall: float
    event: event_pb2.Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One call as its client wrote it down. `told` is empty while no answer was written down."""

    number: int
    rpc: str
    asked: Document
    told: Document

    @property
    def ok(self) -> bool:
        return bool(self.told.get("status") == "OK")

    @property
    def session(self) -> str:
        """The session that was named, or that the answer named."""
        return str(self.asked.get("session") or self.told.get("session", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A reader's streams, each from the last one's cursor. `items` are as `streams.item` made them, in order.

    `through`: the last number that it was told is delivered. With `request` it was given one turn's events.
    """

    number: int
    session: str
    after: int
    request: str
    previews: bool
    through: int
    items: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One start of a tool, as the tool wrote it down."""

    tool: str
    key: str
    session: str
    turn: str
    call: str
    arguments: str
    wall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What the nemesis did; wall times in seconds."""

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

    `seen`: when a client first heard of an event, wall seconds, by session and number. `unfit`: of tests/checker.
    `until`: when clients began nothing new any more.
    """

    logs: Mapping[str, Sequence[Logged]] = field(default_factory=dict)
    heads: Mapping[str, Document] = field(default_factory=dict)
    turns: Mapping[str, Document] = field(default_factory=dict)
    ledger: Mapping[str, Document] = field(default_factory=dict)
    approvals: Mapping[str, Document] = field(default_factory=dict)
    tries: Sequence[Try] = ()
    left: Sequence[str] = ()
    chains: Sequence[Chain] = ()
    effects: Sequence[Effect] = ()
    faults: Sequence[Fault] = ()
    prompts: Sequence[Prompt] = ()
    seen: Mapping[tuple[str, int], float] = field(default_factory=dict)
    until: float = math.inf
    unfit: Sequence[str] = ()

    @cached_property
    def events_of_turn(self) -> Mapping[str, Sequence[Logged]]:
        found: dict[str, list[Logged]] = {}
        for log in self.logs.values():
            for event in log:
                found.setdefault(event.turn, []).append(event)
        return found

    @cached_property
    def events_of_call(self) -> Mapping[str, Sequence[Logged]]:
        """Everything that the logs say of a tool call, its approvals included."""
        found: dict[str, list[Logged]] = {}
        for log in self.logs.values():
            for event in log:
                if call := getattr(getattr(event.event, event.kind), "tool_call_id", ""):
                    found.setdefault(call, []).append(event)
        return found

    @cached_property
    def said(self) -> Mapping[str, str]:
        """What the user said, by turn."""
        received = (event for log in self.logs.values() for event in log if event.kind == "message_received")
        return {event.turn: text_of(event.event.message_received.content) for event in received}

    def at(self, session: str, sequence: int) -> Logged | None:
        """The session's event of this number."""
        return self._by_number.get((session, sequence))

    @cached_property
    def _by_number(self) -> Mapping[tuple[str, int], Logged]:
        return {(session, event.sequence): event for session, log in self.logs.items() for event in log}


@dataclass(slots=True)
class Finding:
    """What became of one promise: how many things were looked at, and what was wrong with them."""

    checked: int = 0
    violations: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        """One more thing looked at."""
        self.checked += 1
        if not holds:
            self.violations.append(otherwise)


def text_of(content: Any) -> str:
    """The text of a message's parts."""
    return "".join(part.text for part in content)
