"""No task group of a replica ends by what a model, a tool or a caller provides: the worker goes on after each."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.processes import until
from tests.unit.engine.execution.one_replica import RUNNER, TIMEOUT, Replica
from turnkeeper.codes import Code
from turnkeeper.domain.event import MessageCompleted
from turnkeeper.domain.tool import ToolOutcome
from turnkeeper.domain.tool_events import ToolReturned
from turnkeeper.domain.turn import TurnState
from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.openai_failure import event_failure
from turnkeeper.store.changeset import Claim
from turnkeeper.tools.contract import OutcomeUnknown


class Panic(BaseException):
    """As a Rust library raises it: no Exception."""


RAISED = [
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    asyncio.CancelledError,
    Panic,
    RecursionError,
    StopAsyncIteration,
]


@pytest.mark.parametrize("error", RAISED)
async def test_b1_whatever_a_models_stream_raises_fails_its_call_alone(
    error: type[BaseException],
) -> None:
    replica = Replica()
    async with replica.running() as worker:
        replica.model.error = error
        key, turn = await replica.turn()
        assert turn.error is not None
        assert (turn.state, turn.error.code) == (TurnState.FAILED, Code.LLM_API_ERROR)
        assert replica.model.calls == 1
        assert not [payload for payload in replica.payloads(key) if isinstance(payload, MessageCompleted)]
        replica.model.error = None
        _, turn = await replica.turn()
        assert turn.state is TurnState.COMPLETED
        assert not worker.done()


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (RuntimeError(), 2),
        (failure(Reason.CUT), 2),
        (failure(Reason.STALL_TIMEOUT), 2),
        (failure(Reason.MALFORMED), 2),
        (event_failure({"error": {"code": 429, "message": "Slow down."}}), 2),
        (failure(Reason.NO_CONNECTION), 4),
        (failure(Reason.SERVER_ERROR, http_status=503), 4),
        (failure(Reason.RATE_LIMIT, http_status=429), 4),
        (failure(Reason.START_TIMEOUT), 4),
        (failure(Reason.CONTENT_FILTER), 1),
        (failure(Reason.NO_DESCRIPTOR), 8),
    ],
)
async def test_a_call_whose_answer_had_begun_or_that_broke_on_a_defect_is_made_twice_at_most(
    error: BaseException, calls: int
) -> None:
    replica = Replica(replace(RUNNER, limits=replace(RUNNER.limits, max_attempts=4)))
    async with replica.running():
        replica.model.error = error
        _, turn = await replica.turn()
    assert (turn.state, replica.model.calls) == (TurnState.FAILED, calls)


@pytest.mark.parametrize("error", RAISED)
async def test_b1_whatever_a_source_of_tools_raises_fails_its_call_alone(error: type[BaseException]) -> None:
    replica = Replica()
    async with replica.running() as worker:
        replica.model.tool, replica.tools.error = "act", error
        key, turn = await replica.turn()
        assert turn.state is TurnState.COMPLETED
        (returned,) = [payload for payload in replica.payloads(key) if isinstance(payload, ToolReturned)]
        assert returned.outcome is ToolOutcome.FAILED
        assert not worker.done()


async def test_a_broken_connection_is_a_question_and_is_counted() -> None:
    replica = Replica()
    async with replica.running():
        replica.model.tool, replica.tools.error = "act", OutcomeUnknown
        key, turn_id = await replica.accepted()
        await until(lambda: "turnkeeper.unknown_outcomes" in replica.meters.read())
    assert replica.database.sessions[key].turns[turn_id].state is TurnState.AWAITING_OUTCOME
    assert replica.meters.points("turnkeeper.unknown_outcomes") == {(("reason", "CONNECTION_LOST"),): 1}


@pytest.mark.parametrize("error", RAISED)
async def test_b1_whatever_a_callers_request_raises_in_the_worker_is_the_callers_alone(
    error: type[BaseException],
) -> None:
    async def work() -> None:
        raise error

    replica = Replica()
    async with replica.running() as worker:
        await asyncio.sleep(0)
        with pytest.raises((error, RuntimeError)):
            await replica.worker.shield(work())
        _, turn = await replica.turn()
        assert turn.state is TurnState.COMPLETED
        assert not worker.done()


@pytest.mark.parametrize("error", RAISED)
async def test_b1_whatever_breaks_a_run_ends_that_run_alone(error: type[BaseException]) -> None:
    replica = Replica()
    async with replica.running() as worker:
        replica.model.goes_on.clear()
        broken = asyncio.create_task(replica.turn())
        async with asyncio.timeout(TIMEOUT):
            await replica.model.wrote.wait()
            replica.breaks = error
            replica.model.goes_on.set()
            await replica.broke.wait()
        _, turn = await replica.turn()
        assert turn.state is TurnState.COMPLETED
        assert not worker.done()
        broken.cancel()
        await asyncio.wait([broken])


async def test_a_lease_that_cannot_be_given_back_ends_no_worker() -> None:
    replica = Replica()
    claim = replica.store.claim

    async def claim_as_the_agent_becomes_busy(*args: Any, **options: Any) -> Claim | None:
        claimed = await claim(*args, **options)
        if claimed is not None and not replica.gives_back.is_set():
            replica.worker.rooms.agents.most = lambda _: 1
            replica.worker.rooms.agents.add(claimed.agent, 1)
        return claimed

    replica.store.claim = claim_as_the_agent_becomes_busy  # type: ignore[method-assign]
    async with replica.running() as worker:
        await replica.accepted()
        await asyncio.wait_for(replica.gives_back.wait(), TIMEOUT)
        replica.worker.rooms.agents.add(RUNNER.name, -1)
        _, turn = await replica.turn()
        assert turn.state is TurnState.COMPLETED
        assert not worker.done()
