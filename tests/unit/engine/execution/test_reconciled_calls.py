"""A tool's server tells what became of a call whose result is missing: real replicas, in virtual time."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.memory_store.state import StoredSession
from tests.unit.engine.simulation.callers import Callers
from tests.unit.engine.simulation.environment import Environment
from tests.unit.engine.simulation.invariants import violations
from tests.unit.engine.simulation.ledger import LedgerServer, OnTheWay
from tests.unit.engine.simulation.outside import AGENT
from tests.unit.engine.simulation.replica import LEASE, OUTCOME_PATIENCE, Replica
from turnkeeper.domain.approval import Approval, ApprovalKind, ApprovalState
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import Call, CallState, ReconciledState, ToolOutcome
from turnkeeper.domain.tool_events import ToolReconciled, ToolReturned
from turnkeeper.domain.turn import TurnState
from turnkeeper.engine.rules.reconciled import MOST_IDLE_STARTS
from turnkeeper.tools.contract import OutcomeUnknown

STATE = ReconciledState
SECOND = timedelta(seconds=1)


class Scene:
    """One session, whose turn calls the tool of a server that keeps its keys."""

    def __init__(self) -> None:
        self.environment = Environment()
        self.callers = Callers(self.environment)
        self.key: SessionKey = self.environment.new_session()
        self.callers.send(self.key, "request", "hello", "REJECT", room=True)
        (self.replica,) = self.environment.replicas

    @property
    def ledger(self) -> LedgerServer:
        return self.environment.ledger

    @property
    def stored(self) -> StoredSession:
        return self.environment.stored(self.key)

    @property
    def call(self) -> Call:
        (call,) = self.stored.calls.values()
        return call

    @property
    def questions(self) -> list[Approval]:
        return [a for a in self.stored.approvals.values() if a.state is ApprovalState.PENDING]

    @property
    def answers(self) -> list[tuple[ReconciledState, int]]:
        payloads = [logged.event.payload for logged in self.stored.log]
        return [(answer.state, answer.attempt) for answer in payloads if isinstance(answer, ToolReconciled)]

    @property
    def results(self) -> list[tuple[ToolOutcome, str]]:
        payloads = [logged.event.payload for logged in self.stored.log]
        return [(result.outcome, result.result_json) for result in payloads if isinstance(result, ToolReturned)]

    def request_transfer(self) -> None:
        (call,) = self.replica.model_calls
        call.respond("asks", ["transfer"], text="", good=True)
        self.environment.settle()

    def pass_time(self, time: timedelta, *, owner: Replica) -> None:
        """Lets time pass, a second at a time, while this owner keeps its lease."""
        for _ in range(round(time / SECOND)):
            self.environment.advance(SECOND)
            self.environment.settle()
            owner.gate.let("renew")
            self.environment.settle()

    def arrive(self, on_the_way: OnTheWay) -> None:
        self.ledger.on_the_way.remove(on_the_way)
        on_the_way.arrives.set_result(None)
        self.environment.settle()

    def drop(self, on_the_way: OnTheWay) -> None:
        """Breaks the connection before the call arrives."""
        self.ledger.on_the_way.remove(on_the_way)
        on_the_way.arrives.set_exception(OutcomeUnknown("The connection broke."))
        self.environment.settle()

    def end(self, *, broken: bool = False) -> None:
        self.ledger.end(self.call.key, broken=broken)
        self.environment.settle()

    def taken_over(self, *, frozen: Replica | None = None) -> Replica:
        """Lets another replica take the turn over. The owner is gone, or `frozen`."""
        if frozen is not None:
            frozen.gate.is_closed = True
        else:
            self.environment.stop(self.owner)
        self.environment.advance(LEASE + SECOND)
        self.environment.sweep()
        self.environment.claim(is_frozen=False)
        return self.owner

    @property
    def owner(self) -> Replica:
        """The replica that owns the turn, among those that go on."""
        going_on = (replica for replica in self.environment.replicas if not replica.gate.is_closed)
        return next(one for one in going_on if any(lease.key == self.key for lease in one.held_leases))


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    assert not scene.environment.observed.violations
    assert not violations(scene.stored)
    scene.environment.close()


def test_a_result_that_was_lost_with_its_owner_comes_from_the_tools_server(scene: Scene) -> None:
    scene.request_transfer()
    scene.end(broken=True)
    assert scene.answers == [(STATE.DONE, 1)]
    assert scene.results == [(ToolOutcome.OK, '"moved"')]
    assert scene.call.state is CallState.RETURNED
    assert not scene.questions


def test_a_stopped_owners_start_has_no_effect_once_the_next_owner_was_told_that_it_did_not_start(scene: Scene) -> None:
    scene.ledger.holds = True
    scene.request_transfer()
    (first,) = scene.ledger.on_the_way
    scene.ledger.holds = False
    scene.taken_over(frozen=scene.replica)
    assert scene.answers == [(STATE.NOT_STARTED, 1)]
    assert (scene.call.state, scene.call.attempt) == (CallState.STARTED, 2)
    scene.replica.gate.open()
    scene.arrive(first)
    scene.end()
    assert scene.ledger.effects == {scene.call.key: 1}
    assert scene.results == [(ToolOutcome.OK, '"moved"')]


def test_a_server_that_breaks_its_promise_doubles_the_effect(scene: Scene) -> None:
    """The test before would see it."""
    scene.ledger.holds, scene.ledger.breaks_its_promise = True, True
    scene.request_transfer()
    (first,) = scene.ledger.on_the_way
    scene.ledger.holds = False
    scene.taken_over(frozen=scene.replica)
    scene.arrive(first)
    assert scene.ledger.effects == {scene.call.key: 2}


def test_a_turn_survives_the_loss_of_an_owner_that_waits_for_the_servers_answer(scene: Scene) -> None:
    scene.request_transfer()
    scene.ledger.is_down = True
    scene.taken_over()
    before = scene.ledger.requests[scene.call.key]
    assert (scene.call.state, scene.answers) == (CallState.STARTED, [])
    scene.taken_over()
    assert scene.ledger.requests[scene.call.key] > before > 0
    scene.ledger.is_down = False
    scene.ledger.end(scene.call.key, broken=True)
    scene.pass_time(OUTCOME_PATIENCE, owner=scene.owner)
    assert scene.answers == [(STATE.DONE, 1)]
    assert scene.results == [(ToolOutcome.OK, '"moved"')]


def test_a_call_that_runs_is_waited_for_as_long_as_its_tool_may_run(scene: Scene) -> None:
    scene.request_transfer()
    owner = scene.taken_over()
    scene.pass_time(OUTCOME_PATIENCE + 4 * SECOND, owner=owner)
    assert (scene.call.state, scene.questions) == (CallState.STARTED, [])
    scene.ledger.end(scene.call.key, broken=True)
    scene.pass_time(3 * SECOND, owner=owner)
    assert scene.results == [(ToolOutcome.OK, '"moved"')]


def test_a_call_that_runs_for_longer_than_its_tool_may_is_a_question(scene: Scene) -> None:
    scene.request_transfer()
    owner = scene.taken_over()
    scene.pass_time(AGENT.limits.tool_timeout + 2 * OUTCOME_PATIENCE, owner=owner)
    assert scene.answers == [(STATE.NO_ANSWER, 1)]
    assert [question.kind for question in scene.questions] == [ApprovalKind.OUTCOME]


@pytest.mark.parametrize("way", ["is_down", "cannot_tell"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_without_an_answer_a_person_decides(scene: Scene, way: str, is_lost: bool) -> None:
    scene.request_transfer()
    setattr(scene.ledger, way, True)
    if is_lost:
        scene.taken_over()
    else:
        scene.end(broken=True)
    if not (way == "cannot_tell" and not is_lost):
        assert not scene.questions
        scene.pass_time(OUTCOME_PATIENCE + 2 * SECOND, owner=scene.owner)
    assert scene.answers == [(STATE.NO_ANSWER, 1)]
    (turn,) = scene.stored.turns.values()
    assert (scene.call.state, turn.state) == (CallState.UNKNOWN, TurnState.AWAITING_OUTCOME)
    assert scene.ledger.effects == {scene.call.key: 1}


def test_a_server_that_was_lost_in_mid_call_cannot_tell_and_a_person_decides(scene: Scene) -> None:
    scene.request_transfer()
    scene.ledger.lose(scene.call.key)
    scene.environment.settle()
    assert scene.answers == [(STATE.UNKNOWN, 1)]
    assert [question.kind for question in scene.questions] == [ApprovalKind.OUTCOME]


def test_a_call_that_its_server_never_takes_fails(scene: Scene) -> None:
    scene.ledger.holds = True
    scene.request_transfer()
    for number in range(MOST_IDLE_STARTS):
        assert scene.call.idle_starts == number
        scene.drop(*scene.ledger.on_the_way)
    assert [state for state, _ in scene.answers] == [STATE.NOT_STARTED] * MOST_IDLE_STARTS
    ((outcome, words),) = scene.results
    assert outcome is ToolOutcome.FAILED
    assert "did not run" in words
    assert not scene.ledger.effects


def test_a_turn_is_cancelled_while_an_answer_is_waited_for(scene: Scene) -> None:
    scene.request_transfer()
    scene.ledger.is_down = True
    owner = scene.taken_over()
    (turn,) = scene.stored.turns.values()
    scene.callers.cancel(scene.key, turn.id, near=True)
    scene.pass_time(3 * SECOND, owner=owner)
    (turn,) = scene.stored.turns.values()
    assert turn.state is TurnState.CANCELLED
    assert [outcome for outcome, _ in scene.results] == [ToolOutcome.CANCELLED]


def test_a_call_that_did_not_finish_in_time_is_reconciled_before_a_person_decides(scene: Scene) -> None:
    scene.request_transfer()
    scene.pass_time(AGENT.limits.tool_timeout + SECOND, owner=scene.replica)
    assert (scene.call.state, scene.questions) == (CallState.STARTED, [])
    assert scene.ledger.requests[scene.call.key] == 1
    scene.ledger.end(scene.call.key, broken=True)
    scene.pass_time(3 * SECOND, owner=scene.replica)
    assert scene.answers == [(STATE.DONE, 1)]
    assert scene.results == [(ToolOutcome.OK, '"moved"')]
    assert scene.ledger.effects == {scene.call.key: 1}


def test_a_connection_that_breaks_after_the_call_was_in_question_is_no_late_result(scene: Scene) -> None:
    scene.ledger.cannot_tell = True
    scene.request_transfer()
    scene.pass_time(AGENT.limits.tool_timeout + SECOND, owner=scene.replica)
    (question,) = scene.questions
    scene.end(broken=True)
    assert scene.questions == [question]
    assert (scene.call.late_attempt, scene.call.late_outcome) == (0, None)
