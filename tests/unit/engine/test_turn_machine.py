"""Sessions in any order of events: callers, owners that crash, freeze and come back, approvers, time.

Hypothesis makes up the orders and shrinks one that breaks an invariant. The replicas are real, without RPCs and
streams. They run on a store in memory that keeps the store's contract, and on an event loop in virtual time. The test
alone decides when a call reaches the store, what models and tools answer and when, which replicas crash or freeze, and
the time.

In `make test` the orders are the same each time; `TURNKEEPER_MODEL_EXAMPLES=5000 pytest
tests/unit/engine/test_turn_machine.py` tries as many new ones.
"""

import os
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.memory_store.state import StoredSession
from tests.unit.engine.simulation.callers import Callers
from tests.unit.engine.simulation.environment import Environment
from tests.unit.engine.simulation.events import EVENTS
from tests.unit.engine.simulation.invariants import texts, violations
from tests.unit.engine.simulation.outside import (
    AGENT,
    CHANGED_SCHEMA,
    FIRST_SCHEMA,
    Defect,
    ModelCall,
    ToolRun,
)
from tests.unit.engine.simulation.replica import OUTCOME_PATIENCE, Hold, Replica
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.session import SessionKey

EXAMPLES = int(os.environ.get("TURNKEEPER_MODEL_EXAMPLES", "0"))
"""How many orders to try instead of the fixed ones."""
UNDER_WAY = 4
"""Calls that are held at the same time, at most."""

Work = tuple[Replica, ModelCall | ToolRun | None]
"""What one replica waits for: an answer of the model, the end of a tool, or that it is not frozen any more (None)."""


class Conversation(RuleBasedStateMachine):
    """Any order of events in up to four sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.environment = Environment()
        self.callers = Callers(self.environment)
        self.under_way: list[Hold] = []
        self.versions: dict[SessionKey, tuple[int, int]] = {}
        """Fence and revision of each session when it was checked last."""
        self.closed: dict[str, tuple[object, ...]] = {}
        """How each approval left PENDING."""
        self.cancels: dict[str, int] = {}
        """The turns that are to be cancelled, with the last event before the request."""
        self.environment.new_session()
        self.send(number=0, request=99, body="hello", if_busy="REJECT", room="room", hold=None)

    # --- what may happen ---------------------------------------------------------------------------------------

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        """By weight: as rules of their own, chance hardly ever got as far as an approval."""
        names = [name for name, (weight, possible, _) in EVENTS.items() if possible(self) for _ in range(weight)]
        name = data.draw(st.sampled_from(names), label="what happens")
        arguments = EVENTS[name][2].items()
        getattr(self, name)(**{argument: data.draw(strategy, label=argument) for argument, strategy in arguments})

    # --- callers -----------------------------------------------------------------------------------------------

    def send(self, number: int, request: int, body: str, if_busy: str, room: str, hold: str | int | None) -> None:
        """Few request ids: many sends are repeats, some with another body."""
        key, request_id = self.key(number), f"request-{request}"
        self.callers.send(
            key, request_id, body, if_busy, room=room != "full", is_slow=room == "slow", hold=self.hold(hold)
        )

    def arrive(self, number: int) -> None:
        self.under_way.pop(number % len(self.under_way)).arrive()
        self.environment.settle()

    def decide(self, number: int, choice: int, by: str, as_read: bool, near: bool, hold: str | int | None) -> None:
        pending = self.pending()
        key, approval_id = pending[number % len(pending)]
        self.callers.decide(key, approval_id, choice, by, as_read=as_read, near=near, hold=self.hold(hold))

    def decide_again(self, number: int, choice: int) -> None:
        approval_id = list(self.callers.decided)[number % len(self.callers.decided)]
        key = next(key for key in self.keys if approval_id in self.environment.stored(key).approvals)
        self.callers.decide(key, approval_id, choice, "bob", as_read=True, near=False)

    def expire(self, number: int, hold: str | int | None) -> None:
        pending = self.pending()
        self.callers.expire(*pending[number % len(pending)], hold=self.hold(hold))

    def cancel(self, number: int, near: bool, hold: str | int | None) -> None:
        turns = self.turns()
        self.callers.cancel(*turns[-1 - number % len(turns)], near=near, hold=self.hold(hold))

    def retry(self, number: int, request: int, room: bool, hold: str | int | None) -> None:
        turns = self.turns(ended=True)
        key, turn_id = turns[-1 - number % min(2, len(turns))]
        self.callers.retry(key, turn_id, f"retry-{request}", room=room, hold=self.hold(hold))

    def end_session(self, number: int, hold: str | int | None) -> None:
        self.callers.end(self.key(number), hold=self.hold(hold))
        self.environment.new_session()

    # --- owners ------------------------------------------------------------------------------------------------

    def claim(self, outcome: str) -> None:
        """By another replica. Not begun: it may be lost, or late, before its first step."""
        self.environment.claim(is_frozen=outcome == "freezes", is_slow=outcome == "slow")

    def work(self, number: int, response: str, names: list[str], good: bool, most: int, ok: bool) -> None:
        """The model or the tools of one of the replicas answer, also of one whose lease is lost."""
        work = self.work_to_do()
        replica, call = work[number % len(work)]
        if call is None:
            replica.gate.open()
        elif isinstance(call, ModelCall):
            call.respond(response, names, text=f"text {self.environment.new_id()}", good=good)
        else:
            for run in [call, *(run for run in replica.tool_runs if run is not call)][:most]:
                run.finish(ok=ok)
        self.environment.settle()

    def work_on(self, response: str, names: list[str], most: int) -> None:
        """Most of what happens is that the newest owner gets on."""
        self.work(number=len(self.work_to_do()) - 1, response=response, names=names, good=True, most=most, ok=True)

    def notify(self, number: int, text: str) -> None:
        """An owner reads its session again; its model has sent some text before."""
        replica = self.owners()[number % len(self.owners())]
        for call in replica.model_calls if text else ():
            call.send(text)
        for lease in replica.held_leases:
            replica.held_leases.notify(lease.key)
        replica.gate.let("cancelled_among")
        self.environment.settle()

    def learn(self) -> None:
        """Replicas learn that their commits were stored: those that are not lost by now run their turns."""
        for replica in self.environment.replicas:
            late = [key for key, _ in replica.store.late.values()]
            replica.gate.let("outcome")
            self.environment.settle()
            replica.gate.let("renew")
            self.environment.settle()
            for key in late:
                stored = self.environment.stored(key)
                knows = any(lease.key == key for lease in replica.held_leases)
                is_lost = replica.gate.is_closed or stored.owner != replica.name
                assert knows or is_lost, f"D.2: {replica.name} owns {stored.active_turn}, and does not know of it"

    def renew(self, number: int) -> None:
        self.owners()[number % len(self.owners())].gate.let("renew")
        self.environment.settle()

    def tools_time_out(self, number: int) -> None:
        """The tools of an owner that keeps its lease do not finish in time; they run on."""
        replica = self.tool_owners()[number % len(self.tool_owners())]
        replica.gate.let("renew")
        self.environment.settle()
        self.environment.advance(AGENT.limits.tool_timeout)
        self.environment.settle()

    def owner_goes(self, number: int, how: str) -> None:
        replica = self.owners()[number % len(self.owners())]
        match how:
            case "crash":
                self.environment.stop(replica)
            case "freeze":
                replica.gate.is_closed = True
            case "drain" | "cut":
                self.environment.drain(replica, grace=3600.0 if how == "drain" else 0.0)
            case _:
                self.break_down(replica)

    def owners_go(self, number: int, times: int, how: str, outcome: str) -> None:
        """One owner after the other goes at the same turn: by chance alone, hardly ever five in a row do."""
        for _ in range(times):
            if not self.owners():
                return
            replica = self.owners()[number % len(self.owners())]
            self.owner_goes(number, how)
            self.time_passes(seconds=31, sweep=True)
            if how == "freeze":
                replica.gate.open()
                self.environment.settle()
            self.time_passes(seconds=15, sweep=False)  # a turn whose owners wrote nothing is due later each time
            if self.claimable():
                self.claim(outcome)

    def break_down(self, replica: Replica) -> None:
        """A defect of the service: in what the model's answer leads to, or in the next read of the session."""
        if replica.model_calls:
            replica.model_calls[0].fail(Defect())
        else:
            replica.gate.has_defect = True
            for lease in replica.held_leases:
                replica.held_leases.notify(lease.key)
        self.environment.settle()
        replica.gate.has_defect = False

    # --- time, and the operator --------------------------------------------------------------------------------

    def time_passes(self, seconds: int, sweep: bool) -> None:
        self.environment.advance(timedelta(seconds=seconds))
        if sweep:
            self.environment.sweep()
        self.environment.settle()

    def deploy(self, changed: bool) -> None:
        """Replicas from here on have tools with the old schema, or with another."""
        self.environment.deploy(CHANGED_SCHEMA if changed else FIRST_SCHEMA)

    # --- invariants --------------------------------------------------------------------------------------------

    @invariant()
    def check_sessions(self) -> None:
        assert not self.environment.observed.violations, "\n".join(self.environment.observed.violations)
        for key, stored in self.environment.database.sessions.items():
            fence, _ = before = self.versions.get(key, (0, 0))
            now = (stored.fence, stored.revision)
            if now == before:
                continue
            assert stored.fence >= fence, "I4: the fence shrank"
            self.versions[key] = now
            self.check(stored)

    def check(self, stored: StoredSession) -> None:
        violated = violations(stored)
        assert not violated, "\n".join(violated)
        for message_id, text, _ in texts(stored):
            sent = self.environment.observed.texts.get(message_id, ())
            assert text in sent, f"I10: no model sent {text!r} as {message_id}"
        for approval in stored.approvals.values():
            state, decided = approval.state, self.callers.decided.get(approval.id)
            assert decided in (None, state), f"I6: {approval.id} was {decided}, and is {state}"
            if state is not ApprovalState.PENDING:
                outcome = (state, approval.decision, approval.decided_by)
                assert self.closed.setdefault(approval.id, outcome) == outcome, "I6, I7: it left PENDING twice"
        self.check_nothing_starts_once_it_is_to_be_cancelled(stored)

    def check_nothing_starts_once_it_is_to_be_cancelled(self, stored: StoredSession) -> None:
        """I12: from the request on, not only from its fulfilment."""
        turn_id = stored.cancel.turn_id
        if turn_id and turn_id not in self.cancels:
            self.cancels[turn_id] = stored.last_seq
        since = self.cancels.get(turn_id, stored.last_seq)
        late = [logged.stored.sequence for logged in stored.log[since:] if logged.stored.kind == "tool_started"]
        assert not late, f"I12: {late} started after the request to cancel"
        gone = stored.turns.keys() - {turn_id}
        self.cancels = {turn_id: at for turn_id, at in self.cancels.items() if turn_id not in gone}

    def teardown(self) -> None:
        """I9: whatever happened, every turn ends: every owner is lost, time passes, other owners go on."""
        try:
            self.end_all_turns()
        finally:
            self.environment.close()

    def end_all_turns(self) -> None:
        environment = self.environment
        for hold in self.under_way:
            hold.arrive()
        environment.settle()
        for replica in list(environment.replicas):
            environment.stop(replica)
        for _ in range(60):
            if not any(stored.active_turn for stored in environment.database.sessions.values()):
                break
            environment.advance(timedelta(minutes=10))
            environment.sweep()
            while self.claimable():
                environment.claim(is_frozen=False)
                self.work_to_the_end()
        self.check_sessions()
        for stored in environment.database.sessions.values():
            left = {turn.id: turn.state for turn in stored.turns.values() if not turn.state.ended}
            assert not left, f"I9: {left} never ended"

    def work_to_the_end(self) -> None:
        for _ in range(40):
            if not self.work_to_do():  # an owner may await the result of a lost one's call
                self.time_passes(seconds=int(OUTCOME_PATIENCE.total_seconds()) + 1, sweep=False)
            if not self.work_to_do():
                return
            self.work(number=0, response="answer", names=[], good=True, most=2, ok=True)
        raise AssertionError("I9: a turn does not come to its end")

    # --- what to choose from -----------------------------------------------------------------------------------

    @property
    def keys(self) -> list[SessionKey]:
        return list(self.environment.database.sessions)

    def key(self, number: int) -> SessionKey:
        """The newest session most of the time: the older ones have often ended."""
        return self.keys[-1 - number % 2] if len(self.keys) > 1 else self.keys[0]

    def hold(self, before: str | int | None) -> Hold | None:
        if before is None or len(self.under_way) >= UNDER_WAY:
            return None
        self.under_way.append(Hold(before))
        return self.under_way[-1]

    def owners(self) -> list[Replica]:
        return [replica for replica in self.environment.replicas if len(replica.held_leases)]

    def tool_owners(self) -> list[Replica]:
        return [replica for replica in self.owners() if replica.tool_runs]

    def work_to_do(self) -> list[Work]:
        """Those that are frozen come first, so that the others get on before them. They have nothing else to do."""
        work: list[Work] = [(replica, None) for replica in self.environment.replicas if replica.gate.is_closed]
        for replica in (replica for replica in self.environment.replicas if not replica.gate.is_closed):
            work.extend((replica, call) for call in replica.model_calls)
            work.extend((replica, run) for run in replica.tool_runs)
        return work

    def is_to_learn(self) -> bool:
        return any(replica.store.late for replica in self.environment.replicas)

    def claimable(self) -> bool:
        return any(
            stored.active_turn
            and not stored.lease_until
            and stored.wake_at
            and stored.wake_at <= self.environment.clock.now
            and not (stored.broken and stored.broken.until > self.environment.clock.now)
            for stored in self.environment.database.sessions.values()
        )

    def pending(self) -> list[tuple[SessionKey, str]]:
        return [
            (key, approval.id)
            for key in self.keys
            for approval in self.environment.stored(key).approvals.values()
            if approval.state is ApprovalState.PENDING
        ]

    def turns(self, *, ended: bool = False) -> list[tuple[SessionKey, str]]:
        return [
            (key, turn.id)
            for key in self.keys
            for turn in self.environment.stored(key).turns.values()
            if turn.state.ended or not ended
        ]


TestConversation = pytest.mark.timeout(300 + EXAMPLES)(Conversation.TestCase)
TestConversation.settings = settings(
    max_examples=EXAMPLES or 80,
    stateful_step_count=50,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
