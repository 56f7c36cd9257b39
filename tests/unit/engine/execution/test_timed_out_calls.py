"""A call that must not run twice times out while its owner goes on: real replicas, in virtual time."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.memory_store.state import StoredSession
from tests.unit.engine.simulation.callers import Callers
from tests.unit.engine.simulation.environment import Environment
from tests.unit.engine.simulation.invariants import violations
from tests.unit.engine.simulation.outside import AGENT, ToolRun
from tests.unit.engine.simulation.replica import Replica
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import Call, CallState, ToolOutcome
from turnkeeper.domain.tool_events import ToolReturned
from turnkeeper.domain.turn import TurnState

STEP = 7
"""Seconds: a lease of the simulation is renewed at each step."""
TIMEOUT = int(AGENT.limits.tool_timeout.total_seconds()) + 1
"""Seconds: one more than the agent's tools may take."""
RETRY, DONE_WITHOUT_RESULT = 0, 4
"""Choices of a caller of the simulation."""


class Scene:
    """One session, whose turn one replica runs."""

    def __init__(self) -> None:
        self.environment = Environment()
        self.callers = Callers(self.environment)
        self.key: SessionKey = self.environment.new_session()
        self.callers.send(self.key, "request", "hello", "REJECT", room=True)
        (self.replica,) = self.environment.replicas

    def request_tools(self, *names: str) -> None:
        (call,) = self.replica.model_calls
        call.respond("asks", list(names), text="", good=True)
        self.environment.settle()

    def pass_time(self, seconds: int) -> None:
        """Lets time pass while the owner keeps its lease."""
        while seconds > 0:
            self.environment.advance(timedelta(seconds=min(STEP, seconds)))
            self.environment.settle()
            self.replica.gate.let("renew")
            self.environment.settle()
            seconds -= STEP

    def run_of(self, number: int) -> ToolRun:
        return self.replica.tool_runs[number]

    def finish(self, run: ToolRun, *, ok: bool = True) -> None:
        run.finish(ok=ok)
        self.environment.settle()

    def decide(self, approval: Approval, choice: int) -> None:
        self.callers.decide(self.key, approval.id, choice, "ada", as_read=True, near=True)

    @property
    def stored(self) -> StoredSession:
        return self.environment.stored(self.key)

    @property
    def pending(self) -> Approval:
        (approval,) = [a for a in self.stored.approvals.values() if a.state is ApprovalState.PENDING]
        return approval

    def call_of(self, tool: str) -> Call:
        (call,) = [call for call in self.stored.calls.values() if call.tool == tool]
        return call

    def results_of(self, tool: str) -> list[ToolOutcome]:
        payloads = [logged.event.payload for logged in self.stored.log]
        return [payload.outcome for payload in payloads if isinstance(payload, ToolReturned) and payload.tool == tool]

    def check(self) -> None:
        assert not self.environment.observed.violations
        assert not violations(self.stored)


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.check()
    scene.environment.close()


def overdue(scene: Scene) -> ToolRun:
    """Lets `fire` time out while the owner still runs another tool. Returns the run of `fire`, which goes on."""
    scene.request_tools("fire", "note", "note")  # two at a time: the third starts when the second has ended
    first, note = scene.run_of(0), scene.run_of(1)
    scene.pass_time(TIMEOUT // 2)
    scene.finish(note)
    scene.pass_time(TIMEOUT // 2 + 1)
    assert scene.call_of("fire").state is CallState.UNKNOWN
    assert owner(scene) is scene.replica
    return first


def owner(scene: Scene) -> Replica | None:
    return scene.environment.owner_of(scene.key)


def test_d3_its_late_result_comes_while_its_owner_goes_on(scene: Scene) -> None:
    first = overdue(scene)
    scene.finish(first)
    call = scene.call_of("fire")
    assert (call.state, call.late_outcome, call.late_result_json) == (CallState.UNKNOWN, ToolOutcome.OK, '"done"')
    assert scene.pending.late_result_json == '"done"'
    assert not scene.results_of("fire")
    scene.decide(scene.pending, DONE_WITHOUT_RESULT)
    assert scene.results_of("fire") == [ToolOutcome.OK]
    scene.finish(scene.run_of(0))
    assert scene.results_of("note") == [ToolOutcome.OK, ToolOutcome.OK]
    assert len(scene.replica.model_calls) == 1


def test_d3_the_first_ones_result_is_not_that_of_a_second_start_under_the_same_owner(scene: Scene) -> None:
    first = overdue(scene)
    scene.decide(scene.pending, RETRY)
    again = scene.replica.tool_runs[-1]
    assert again is not first
    assert scene.call_of("fire").state is CallState.STARTED
    scene.finish(first, ok=False)
    call = scene.call_of("fire")
    assert (call.state, call.late_outcome) == (CallState.STARTED, None)
    scene.finish(again)
    assert scene.results_of("fire") == [ToolOutcome.OK]
    scene.check()


def test_d3_an_owner_that_is_lost_after_a_timeout_was_stored_leaves_one_question(scene: Scene) -> None:
    overdue(scene)
    question = scene.pending
    scene.environment.stop(scene.replica)
    scene.environment.advance(timedelta(seconds=31))
    scene.environment.sweep()
    scene.environment.claim(is_frozen=False)
    assert scene.pending == question
    assert scene.environment.observed.tool_starts[question.tool_call_id, 0] == 1


def test_d3_a_turn_that_waits_for_the_outcome_has_no_owner_and_its_late_result_still_comes(scene: Scene) -> None:
    scene.request_tools("fire")
    first = scene.run_of(0)
    scene.pass_time(TIMEOUT)
    (turn,) = scene.stored.turns.values()
    assert (turn.state, owner(scene)) == (TurnState.AWAITING_OUTCOME, None)
    scene.environment.advance(timedelta(seconds=100))
    scene.environment.sweep()
    scene.finish(first)
    assert scene.pending.late_result_json == '"done"'
    (turn,) = scene.stored.turns.values()
    assert turn.state is TurnState.AWAITING_OUTCOME
