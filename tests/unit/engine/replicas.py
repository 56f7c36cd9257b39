"""What replicas do with a turn, one action at a time: the calls of the engine's loop without its tasks and clocks.

Every decision is the engine's own; here is only the order of reading, deciding and storing, as `loop`, `worker` and
`journal` have it, and notes of what was done outside the log: what a model said, which tools were let loose.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tests.builders import NOON, a_session, a_session_key
from tests.unit.engine.invariants import unpaired
from tests.unit.engine.memory_log import Kept, MemoryLog
from turnkeeper.codes import ErrorDetail
from turnkeeper.domain.agent import Agent, AgentLimits, PolicyRule
from turnkeeper.domain.event import NewEvent, SessionCreated
from turnkeeper.domain.history import History
from turnkeeper.domain.message import FinishReason, ToolRequest, Usage
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import Call, PolicyAction, ToolClass, ToolOutcome, ToolResult, ToolSpec, approval_hash
from turnkeeper.domain.turn import AwaitResults, CallModel, ResolveLost, RunTools, Step, Turn, TurnState
from turnkeeper.engine.rules import turns as turn_rules
from turnkeeper.engine.rules.advance import Owner, advance_turn, due_step
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.model.contract import ModelAnswer
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import Committed, Conflict, Snapshot
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.toolbox import Finished, Toolbox

LEASE = timedelta(seconds=30)
PLAIN = '{"type":"object","properties":{"n":{"type":"integer"}}}'
CHANGED = '{"type":"object","properties":{"n":{"type":"integer"},"to":{"type":"string"}}}'
CLASSES = {
    "look": ToolClass.READ_ONLY,
    "note": ToolClass.IDEMPOTENT,
    "fire": ToolClass.IRREVERSIBLE,
    "pay": ToolClass.IRREVERSIBLE,
    "write": ToolClass.IDEMPOTENT,
    "never": ToolClass.IRREVERSIBLE,
}
TOOLS = (*CLASSES, "missing")
AGENT = Agent(
    name="assistant",
    model="small",
    instructions="Be brief.",
    tools=("*",),
    policy=(
        PolicyRule(tool="note", action=PolicyAction.NOTIFY),
        PolicyRule(tool="fire", action=PolicyAction.AUTO),
        PolicyRule(tool="never", action=PolicyAction.DENY),
        PolicyRule(tool="*", action=PolicyAction.APPROVE, ttl=timedelta(minutes=5)),
    ),
    limits=AgentLimits(max_iterations=3, max_attempts=3, parallel_tools=2),
)


class Shelf:
    """A source of tools that the machine never calls: it only says what they return."""

    def __init__(self, schema: str) -> None:
        self._schema = schema

    def specs(self) -> list[ToolSpec]:
        return [
            ToolSpec(name=name, description="", schema_json=self._schema, tool_class=tool_class, source="python")
            for name, tool_class in CLASSES.items()
        ]

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> object:
        raise NotImplementedError


@dataclass(slots=True)
class Environment:
    """The log, its clock, the tools of today, and notes of what happened outside the log."""

    now: datetime = NOON
    toolbox: Toolbox = field(default_factory=lambda: Toolbox([Shelf(PLAIN)]))
    said: dict[str, set[str]] = field(default_factory=dict)
    spoken: set[tuple[str, int, str]] = field(default_factory=set)
    launched: Counter[tuple[str, int]] = field(default_factory=Counter)
    lost_in_a_row: Counter[str] = field(default_factory=Counter)
    log: MemoryLog = field(init=False)
    _ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.log = MemoryLog(WireCodec(), now=lambda: self.now)

    def new_id(self) -> str:
        return f"id-{next(self._ids):05d}"

    def new_session(self) -> SessionKey:
        place = a_session_key(session_id=f"session-{len(self.log.sessions)}")
        session = a_session(place, title="", labels={}, agent=AGENT.name, agent_version=AGENT.version)
        created = SessionCreated(agent=AGENT.name, agent_version=AGENT.version, owner=session.owner, title="")
        self.log.create_session(session, AGENT, event=NewEvent(payload=created, at=NOON))
        return place

    def kept(self, key: SessionKey) -> Kept:
        return self.log.sessions[key]

    def read(self, key: SessionKey, turn_id: str = "") -> Snapshot:
        snapshot = self.log.snapshot(key, turn_id=turn_id)
        assert snapshot is not None
        return snapshot

    def uow(self, snapshot: Snapshot) -> UnitOfWork:
        """By the clock of the database as it is now, as `loop` computes it."""
        head = replace(snapshot.head, now=self.now)
        return UnitOfWork(replace(snapshot, head=head), at=self.now, new_id=self.new_id)

    def after(self, uow: UnitOfWork, committed: Committed, *, by_owner: bool) -> Snapshot:
        """What is known without a reading. Where nobody else wrote, a reading finds the same."""
        known = uow.snapshot_after(committed, by_owner=by_owner)
        turn_id = uow.snapshot.turn.id if uow.snapshot.turn else ""
        found = self.read(known.head.session_key, turn_id)
        if found.head.revision == uow.snapshot.head.revision + 1:
            found = replace(found, head=replace(found.head, now=known.head.now), turn=known.turn and found.turn)
            assert known == found, "what is kept is not what is stored"
        assert known.head.revision <= found.head.revision, "what is kept would fit though somebody else wrote"
        return known

    def sweep(self) -> None:
        """Leases that lapsed; each is an owner that was lost."""
        for kept in self.log.sessions.values():
            if kept.active_turn and kept.lease_until is not None and kept.lease_until <= self.now:
                self.lost_in_a_row[kept.active_turn] += 1
        self.log.requeue_lapsed()


@dataclass(slots=True)
class Run:
    """A turn in an owner's hands. `lost`: it knows that it has it no more."""

    environment: Environment
    key: SessionKey
    turn_id: str
    owner: str
    fence: int
    snapshot: Snapshot
    lapses: int = 0
    begun: bool = False
    toolbox: Toolbox = field(init=False)
    running: dict[str, Call] = field(default_factory=dict)
    renewed_at: datetime = field(init=False)
    releasing: bool = False
    lost: bool = False

    def __post_init__(self) -> None:
        self.toolbox = self.environment.toolbox
        self.renewed_at = self.environment.now

    @property
    def turn(self) -> Turn:
        assert self.snapshot.turn is not None
        return self.snapshot.turn

    @property
    def ours(self) -> bool:
        going = self.turn.state is TurnState.RUNNING and self.snapshot.head.active_turn == self.turn_id
        return not self.lost and (not self.begun or going)

    @property
    def due(self) -> Step:
        return due_step(self.turn, self.snapshot.calls, self._owner())

    def begin(self) -> None:
        """What a claim leads to: a last word, or a new attempt."""
        self.read_again()
        if self.lost:
            return
        error = turn_rules.lapse_limit_error(self.turn, lapses=self.lapses)
        lost = self.environment.lost_in_a_row[self.turn_id]
        assert (error is not None) == (lost >= turn_rules.MAX_LAPSES), f"{lost} owners were lost in a row: {error}"
        if error is None:
            self.append(lambda uow: turn_rules.begin_attempt(uow, lapses=self.lapses))
        else:
            self.append(lambda uow: uow.fail_turn(error))
        self.begun = True

    def follow(self) -> None:
        """The due step, when nobody outside has a part in it."""
        step = self.due
        if isinstance(step, ResolveLost):
            self.append(lambda uow: turn_rules.resolve_lost_calls(uow, step.calls, agent=AGENT))
        elif self.releasing and not self.running:
            self.hand_over(cut=False)
        elif not isinstance(step, CallModel | AwaitResults) and not (isinstance(step, RunTools) and self.releasing):
            self.append(lambda _: None)

    def speak(self, text: str, tools: list[ToolRequest], finish: FinishReason) -> None:
        """The model's whole answer."""
        if not self._ask_model():
            return
        self.environment.said.setdefault(self.turn.next_message_id, set()).add(text)
        answer = ModelAnswer(
            text=text,
            tool_requests=tuple(tools),
            finish_reason=finish,
            usage=Usage(input_tokens=3, output_tokens=2, model_calls=1),
            model="small",
        )
        self.append(
            lambda uow: turn_rules.record_answer(uow, answer, tools, agent=AGENT, toolbox=self.toolbox),
            progress=True,
        )

    def fail_to_speak(self, error: ErrorDetail, delay: timedelta | None) -> None:
        if self._ask_model():
            tries = self.turn.tries + 1
            delay = delay if tries < AGENT.limits.max_attempts else None
            self.append(
                lambda uow: turn_rules.record_model_failure(uow, error, tries=tries, delay=delay), progress=True
            )

    def nudge(self, text: str) -> None:
        """Somebody wants something: look, and close what the model has said so far if it is a cancellation."""
        speaking, message_id = isinstance(self.due, CallModel), self.turn.next_message_id
        self.read_again()
        if self.lost:
            return
        cancelled = self.snapshot.head.cancel.turn_id == self.turn_id
        if cancelled and speaking:
            self.environment.said.setdefault(message_id, set()).add(text)
            self.append(lambda uow: turn_rules.record_partial_answer(uow, text, model="small"))
        elif cancelled:
            self.running.clear()
            self.append(lambda uow: turn_rules.record_tool_results(uow, []))
        elif not isinstance(self.due, CallModel | AwaitResults):
            self.follow()

    def finish_tools(self, outcome: ToolOutcome, most: int) -> None:
        done = list(self.running)[:most]
        for call_id in done:
            del self.running[call_id]
        result = ToolResult(outcome=outcome, result_json='"done"')
        finished = [Finished(call_id=each, result=result, duration=timedelta(seconds=1)) for each in done]
        self.append(lambda uow: turn_rules.record_tool_results(uow, finished), progress=True)

    def hand_over(self, *, cut: bool) -> None:
        """At drain. `cut`: the model was speaking, or tools were running."""
        cut_message = cut and isinstance(self.due, CallModel)
        self.running.clear()
        for _ in range(2):
            uow = self.environment.uow(self.snapshot)
            turn_rules.hand_over(uow, cut=cut_message)
            if self._store(uow):
                break
            self.read_again()
            if self.lost:
                return
        self.lost = True

    def break_down(self) -> None:
        """A defect: give the turn back under its fence, for another try later."""
        self.lost = True
        snapshot = self.environment.read(self.key, self.turn_id)
        if snapshot.head.fence != self.fence or not snapshot.head.owner:
            return
        uow = self.environment.uow(snapshot)
        turn_rules.release_for_retry(uow)
        verdict = self.environment.log.commit(uow.changeset(changeset_id=self.environment.new_id(), fence=self.fence))
        assert isinstance(verdict, Committed), verdict
        self.environment.lost_in_a_row[self.turn_id] += 1

    def renew(self) -> None:
        if self.environment.log.renew(self.key, owner=self.owner, fence=self.fence, lease=LEASE):
            self.renewed_at = self.environment.now
        else:
            self.lost = True

    def read_again(self) -> None:
        snapshot = self.environment.read(self.key, self.turn_id)
        if snapshot.head.fence != self.fence:
            self.lost = True
        else:
            self.snapshot = snapshot

    def append(self, decide: Callable[[UnitOfWork], None], *, progress: bool = False) -> None:
        """Store what it says and what follows; read and decide again where something else moved."""
        for _ in range(2):
            uow = self.environment.uow(self.snapshot)
            decide(uow)
            launch = advance_turn(uow, self._owner())
            if self._store(uow):
                if progress:
                    self.environment.lost_in_a_row[self.turn_id] = 0
                for call in launch:
                    self._launch(call)
                return
            if not self.lost:
                self.read_again()
            if self.lost:
                return
        raise AssertionError("a step on what was read just now is stale")

    def _store(self, uow: UnitOfWork) -> bool:
        """False when it is stale, or this owner was fenced."""
        verdict = self.environment.log.commit(
            uow.changeset(changeset_id=self.environment.new_id(), fence=self.fence, lease_for=LEASE)
        )
        if isinstance(verdict, Committed):
            assert self.environment.kept(self.key).fence == self.fence, "I4: it was stored under another fence"
            self.snapshot, self.renewed_at = self.environment.after(uow, verdict, by_owner=True), self.environment.now
            return True
        self.lost = not isinstance(verdict, Conflict)
        return False

    def _launch(self, call: Call) -> None:
        """The tool is let loose; what it takes must be what was approved (I14)."""
        spec = self.toolbox.find(AGENT, call.tool)
        assert spec is not None
        hashed = approval_hash(spec, arguments_json=call.arguments_json, policy_version=AGENT.version)
        assert hashed == call.arguments_hash, "I14: another call runs than was proposed"
        self.environment.launched[call.id, call.round] += 1
        once = not call.tool_class.may_start_again
        assert not (once and self.environment.launched[call.id, call.round] > 1), f"I5: {call.tool} was started twice"
        self.running[call.id] = call

    def _ask_model(self) -> bool:
        """The lease is sure; every call has a name of its own (previews), and a history that pairs (I16)."""
        if self.environment.now - self.renewed_at > LEASE * 2 / 3:
            self.lost = True
            return False
        name = (self.turn_id, self.turn.attempt, self.turn.next_message_id)
        history = History()
        for each in self.environment.kept(self.key).log[: self.snapshot.head.last_seq]:
            history.add(each.event)
        assert not list(unpaired(history.messages("Be brief."), set())), "I16: the history cannot be sent"
        assert history.messages(""), "the model is asked nothing"
        assert name not in self.environment.spoken, f"two model calls stream as {name}"
        self.environment.spoken.add(name)
        return True

    def _owner(self) -> Owner:
        return Owner(
            agent=AGENT,
            toolbox=self.toolbox,
            fence=self.fence,
            running=frozenset(self.running),
            releasing=self.releasing,
        )
