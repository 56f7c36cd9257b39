"""What is observed of the replicas from outside their code: at the store, at the model, and at the tools."""

import json
import weakref
from asyncio import Task, current_task
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from tests.memory_store.state import MemoryDatabase, StoredSession
from tests.unit.engine.simulation.invariants import texts, unpaired
from tests.unit.engine.simulation.virtual_loop import Clock
from turnkeeper.codes import Code
from turnkeeper.domain.agent import Agent
from turnkeeper.domain.event import AttemptFailed, MessageCompleted, TurnCancelled, TurnFailed, TurnRetried
from turnkeeper.domain.history import History
from turnkeeper.domain.message import FinishReason, Message, Role
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import Call, CallState, ToolSpec, canonical_json, decision_hash
from turnkeeper.domain.tool_events import ToolReturned
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.rules.turns import MAX_BROKEN_RUNS, MAX_LOST_OWNERS
from turnkeeper.store.changeset import Changeset, Claim, CommitResult, Committed, Conflict, LeaseChange, Snapshot
from turnkeeper.tools.contract import ToolContext

MOST_CONFLICTS = 20
"""In a row, of one writer: only so many other writers are under way."""


@dataclass(frozen=True, slots=True)
class LapsedOwner:
    """An owner that wrote under its fence, and whose lease lapsed."""

    name: str
    lease_until: datetime


@dataclass(slots=True)
class Observed:
    """Notes of what happened outside the log, and the violations that were found on the way.

    The engine takes an error in a turn's run for a defect of its own, and goes on: so a violation is noted, not raised.
    """

    clock: Clock
    database: MemoryDatabase
    is_gone: Callable[[str], bool]
    """Returns True if the replica of this name is stopped, or frozen just now."""
    violations: list[str] = field(default_factory=list)
    texts: dict[str, set[str]] = field(default_factory=dict)
    """What models sent, by message: each text as far as it had come."""
    sent: dict[tuple[str, int, str], str] = field(default_factory=dict)
    """What the model has sent in each call. The calls differ by turn, attempt and message, and so do their previews."""
    tool_starts: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often the tool of a call was started in each round of its approval."""
    lapsed_owners: dict[str, list[LapsedOwner]] = field(default_factory=dict)
    """Of each turn, since its last progress."""
    broken_runs: Counter[str] = field(default_factory=Counter)
    """Runs of a turn that broke on a defect."""
    _written: dict[SessionKey, int] = field(default_factory=dict)
    """The last fence under which an owner wrote."""
    _claims: dict[tuple[SessionKey, int], str] = field(default_factory=dict)
    """Turns that were claimed under a fence, until their owner's first commit."""
    _reads: "weakref.WeakKeyDictionary[Task[Any], tuple[object, ...]]" = field(
        default_factory=weakref.WeakKeyDictionary
    )
    """What each task read last."""

    _conflicts: "weakref.WeakKeyDictionary[Task[Any], int]" = field(default_factory=weakref.WeakKeyDictionary)
    """How many Conflicts each task got in a row."""

    def check(self, holds: bool, violation: str) -> None:
        """Notes the violation unless the condition holds."""
        if not holds:
            self.violations.append(violation)

    def stored(self, key: SessionKey) -> StoredSession:
        """Returns the session as it is now."""
        return self.database.sessions[key]

    # --- the store ---------------------------------------------------------------------------------------------

    def read(self, snapshot: Snapshot | None) -> None:
        """A task has read this snapshot."""
        task = current_task()
        if snapshot is not None and task is not None:
            self._reads[task] = self._version(snapshot.head.session_key)

    def claimed(self, claim: Claim | None) -> None:
        """A replica got this claim."""
        if claim is not None:
            self._claims[claim.session_key, claim.fence] = claim.turn_id

    def swept(self) -> None:
        """A sweep is about to requeue."""
        for stored in self.database.sessions.values():
            if not stored.active_turn or stored.lease_until is None or stored.lease_until > self.clock.now:
                continue
            if self._written.get(stored.session.key) == stored.fence:
                owner = LapsedOwner(stored.owner, stored.lease_until)
                self.lapsed_owners.setdefault(stored.active_turn, []).append(owner)

    def given_back(self, key: SessionKey, *, broken: bool) -> None:
        """An owner gave its turn back."""
        self.broken_runs[self.stored(key).active_turn] += broken

    def committed(self, changeset: Changeset, result: CommitResult) -> None:
        """A changeset got this result."""
        key, task = changeset.session_key, current_task()
        assert task is not None
        self._conflicts[task] = self._conflicts.get(task, 0) + 1 if isinstance(result, Conflict) else 0
        if self._conflicts[task] > MOST_CONFLICTS or (
            self._conflicts[task] and self._reads.get(task) == self._version(key)
        ):
            self.check(False, "a decision on what was read just now is a Conflict")
            raise AssertionError("the writer would try again for ever")
        if not isinstance(result, Committed):
            return
        if changeset.fence is not None or changeset.head.lease is LeaseChange.TAKE:
            self._written[key] = result.fence
        if changeset.fence is not None:
            self.check(self.stored(key).fence == changeset.fence, "I4: it was stored under another fence")
            self._check_given_up(changeset)
            self._check_partial_text(changeset)
        self._forget_if_it_counts_anew(changeset)

    def _forget_if_it_counts_anew(self, changeset: Changeset) -> None:
        """After progress no owner counts as lost that was lost before; after a retry, no broken run does either."""
        for event in changeset.events:
            is_new_start = isinstance(event.payload, TurnRetried)
            if is_new_start or (changeset.fence is not None and _is_progress(event.payload)):
                self.lapsed_owners.pop(event.turn_id, None)
            if is_new_start:
                self.broken_runs.pop(event.turn_id, None)

    def _check_partial_text(self, changeset: Changeset) -> None:
        """I10: the owner that cancels a turn stores the text that its model has sent."""
        for event in changeset.events:
            if isinstance(event.payload, TurnCancelled):
                turn = next(turn for turn in changeset.turns if turn.id == event.turn_id)
                sent = self.sent.get((turn.id, turn.attempt, turn.next_message_id), "")
                closed = [text for _, text, _ in texts(self.stored(changeset.session_key))]
                self.check(not sent or sent in closed, f"I10: {sent!r} was sent, and is lost with the cancellation")

    def _check_given_up(self, changeset: Changeset) -> None:
        """Checks that a claimed turn fails after MAX_LOST_OWNERS or MAX_BROKEN_RUNS, and not before."""
        assert changeset.fence is not None
        turn_id = self._claims.pop((changeset.session_key, changeset.fence), None)
        codes = {event.payload.error.code for event in changeset.events if isinstance(event.payload, TurnFailed)}
        if turn_id is None:
            self.check(not codes & _GIVEN_UP, f"given up in the middle of a run: {codes}")
            return
        lost, broken = self._lost_owners(turn_id), self.broken_runs[turn_id]
        expected = _given_up_as(len(lost), broken)
        self.check(codes & _GIVEN_UP == expected, f"{lost} were lost, {broken} runs broke: {codes}")
        self.check(all(map(self.is_gone, lost)), f"{lost} count as lost, and one of them is alive")

    def _lost_owners(self, turn_id: str) -> list[str]:
        """Returns the lapsed owners of the turn whose heartbeat stopped when the renewals of their lease did."""
        heartbeats = self.database.heartbeats
        return [
            owner.name
            for owner in self.lapsed_owners.get(turn_id, ())
            if 0.5 <= (owner.lease_until - heartbeats[owner.name].at) / heartbeats[owner.name].silent_after <= 2
        ]

    def _version(self, key: SessionKey) -> tuple[object, ...]:
        stored = self.database.sessions.get(key)
        return (key, stored and stored.revision, self.clock.now)

    def decides_on(self, snapshot: Snapshot) -> None:
        """A decision is made on this snapshot, now."""
        current = snapshot.head.revision == self.stored(snapshot.head.session_key).revision
        delay = self.clock.now - snapshot.head.now
        self.check(not (current and delay), f"the decider's clock is {delay} behind")
        self.knows(snapshot)

    def knows(self, snapshot: Snapshot) -> None:
        """A replica caches this snapshot: unless another writer wrote since, it is what a reader finds.

        Only whether the lease has lapsed may differ: that follows from the time, and from renewals.
        """
        head, stored = snapshot.head, self.stored(snapshot.head.session_key)
        self.check(head.revision <= stored.revision, "what is cached would fit though another writer wrote")
        if head.revision != stored.revision:
            return
        stored_snapshot = stored.snapshot(head.now, turn_id=snapshot.turn.id if snapshot.turn else "")
        stored_snapshot = replace(stored_snapshot, head=replace(stored_snapshot.head, owned=head.owned))
        stored_snapshot = replace(stored_snapshot, calls=_open_calls(stored_snapshot))
        cached = replace(snapshot, calls=_open_calls(snapshot), request=None)
        differences = "; ".join(_differences(cached, stored_snapshot))
        self.check(not differences, f"what is cached is not what is stored: {differences}")

    # --- the model, and tools ----------------------------------------------------------------------------------

    def model_is_called(self, owner: str, agent: Agent, turn: Turn, messages: tuple[Message, ...], after: int) -> None:
        """An owner calls the model. Every call has a name of its own (previews), and a history that pairs (I16)."""
        stored = self.stored(turn.session_key)
        self.check(stored.owner in ("", owner), "I4: the model is called while another owner has the session")
        sure = stored.owner != owner or (stored.lease_until is not None and stored.lease_until > self.clock.now)
        self.check(sure, "I4: the model is called under a lease that lapsed")
        history = History()
        for logged in stored.log[:after]:
            history.add(logged.event)
        self.check(messages == history.messages(agent.instructions), "the conversation is not the log's")
        self.check(not list(unpaired(messages, set())), "I16: the history cannot be sent")
        self.check(any(message.role is not Role.SYSTEM for message in messages), "the model is asked nothing")
        name = (turn.id, turn.attempt, turn.next_message_id)
        self.check(name not in self.sent, f"two model calls stream as {name}")
        self.sent[name] = ""

    def tool_is_started(self, spec: ToolSpec, agent: Agent, context: ToolContext, arguments: dict[str, object]) -> None:
        """A tool is started: with what was approved (I14), once in each round if it cannot be taken back (I5)."""
        call = self.stored(SessionKey(context.tenant, context.session_id)).calls[context.tool_call_id]
        text = canonical_json(json.dumps(arguments))
        running = replace(
            call,
            source=spec.source,
            tool=spec.name,
            schema_hash=spec.schema_hash,
            description_hash=spec.description_hash,
            tool_class=spec.tool_class,
            arguments_json=text,
        )
        hashed = decision_hash(running)
        self.check(hashed == call.arguments_hash, "I14: another call runs than was proposed")
        self.check(context.key == call.key, "I5: the tool is started under another key")
        self.tool_starts[call.id, call.round] += 1
        once = not call.tool_class.may_start_again
        starts = self.tool_starts[call.id, call.round] - call.idle_starts
        self.check(not once or starts <= 1, f"I5: {call.tool} was started twice")


def _open_calls(snapshot: Snapshot) -> tuple[Call, ...]:
    """Returns the calls without a result: the owner of a turn that is retried needs no others."""
    return tuple(call for call in snapshot.calls if call.state is not CallState.RETURNED)


def _differences(cached: Any, stored: Any) -> Iterator[str]:
    """Yields the fields in which two values differ, also those of their own values."""
    for name in (item.name for item in fields(cached)):
        one, other = getattr(cached, name), getattr(stored, name)
        if one != other and type(one) is type(other) and is_dataclass(one):
            yield from (f"{name}.{difference}" for difference in _differences(one, other))
        elif one != other:
            yield f"{name} is {one}, stored is {other}"


_GIVEN_UP = {Code.AGENT_CONFIG_ERROR, Code.RUN_DEFECT}


def _given_up_as(lost_owners: int, broken_runs: int) -> set[Code]:
    """Returns the code with which a claimed turn fails at once, if it does."""
    if broken_runs >= MAX_BROKEN_RUNS:
        return {Code.RUN_DEFECT}
    return {Code.AGENT_CONFIG_ERROR} if lost_owners >= MAX_LOST_OWNERS else set()


def _is_progress(payload: object) -> bool:
    match payload:
        case MessageCompleted(finish_reason=finish_reason):
            return finish_reason is not FinishReason.INTERRUPTED
        case ToolReturned(duration=duration):
            return isinstance(duration, timedelta)
        case _:
            return isinstance(payload, AttemptFailed)
