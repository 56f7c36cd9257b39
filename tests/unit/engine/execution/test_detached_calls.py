"""A model or a tool that swallows its cancellation is left behind: its turn, its session and its server go on."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import a_call, a_session_key
from tests.contracts.stores import head_of
from tests.unit.engine.execution.one_replica import RUNNER, TIMEOUT, Replica
from turnkeeper.codes import Code
from turnkeeper.domain.event import MessageCompleted
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import ToolClass
from turnkeeper.domain.turn import CancelReason, TurnState
from turnkeeper.engine.execution import detached, tool_runner, turn_run
from turnkeeper.engine.execution.late_results import LateResults
from turnkeeper.engine.execution.tool_runner import OrphanedCall
from turnkeeper.store.changeset import Cancel
from turnkeeper.tools.toolbox import Finished

NewReplica = Callable[..., Replica]
IN_TIME = 5
"""Seconds: much more than a call that is left behind takes here, and much less than it takes to end."""


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (detached, tool_runner):
        monkeypatch.setattr(module, "CANCEL_TIME", 0.05)
    monkeypatch.setattr(turn_run, "DEADLINE_GRACE", 0.01)


@pytest.fixture
async def new_replica() -> AsyncIterator[NewReplica]:
    """Releases at the end what a replica's model and tool still wait for, so that a failed test ends."""
    replicas: list[Replica] = []

    def new(**given: Any) -> Replica:
        replicas.append(Replica(**given))
        return replicas[-1]

    yield new
    for replica in replicas:
        replica.model.goes_on.set()
        replica.tools.released.set()


@pytest.fixture
async def unretrieved() -> AsyncIterator[list[dict[str, Any]]]:
    """Collects what asyncio reports, such as errors of tasks that nothing has retrieved."""
    reports: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reports.append(context))
    yield reports
    loop.set_exception_handler(None)


async def _writing(replica: Replica) -> tuple[SessionKey, str]:
    """Returns a turn whose model has written a word, and does not end when it is cancelled."""
    replica.model.stubborn = True
    replica.model.goes_on.clear()
    key, turn_id = await replica.accepted()
    async with asyncio.timeout(TIMEOUT):
        await replica.model.wrote.wait()
    return key, turn_id


async def _cancel(replica: Replica, key: SessionKey, turn_id: str) -> None:
    cancel = Cancel(turn_id=turn_id, by="ada", reason=CancelReason.REQUESTED.value)
    assert await replica.store.request_cancel(key, cancel)
    replica.log_writer.notify_owner(key)


async def _release(replica: Replica) -> None:
    """Lets the model that was left behind go on, to its end."""
    left = set(replica.services.detached)
    assert left
    replica.model.goes_on.set()
    async with asyncio.timeout(IN_TIME):
        await asyncio.wait(left)
    await asyncio.sleep(0)
    assert not replica.services.detached


async def test_c1_a_turn_is_cancelled_though_its_model_swallows_the_cancellation(
    new_replica: NewReplica,
    caplog: pytest.LogCaptureFixture,
) -> None:
    replica = new_replica()
    async with replica.running():
        key, turn_id = await _writing(replica)
        async with asyncio.timeout(IN_TIME):
            await _cancel(replica, key, turn_id)
            turn = await replica.ended(key, turn_id)
        assert turn.state is TurnState.CANCELLED
        (message,) = [payload for payload in replica.payloads(key) if isinstance(payload, MessageCompleted)]
        assert message.content[0].text == "Once"
        assert replica.meters.points("turnkeeper.detached_calls") == {(("reason", "MODEL"),): 1}
        (record,) = [record for record in caplog.records if "left behind" in record.message]
        assert record.levelno == logging.WARNING
        assert f"agent {RUNNER.name} (model {RUNNER.model})" in record.message
        await _release(replica)


async def test_c1_what_a_call_that_was_left_behind_yields_goes_nowhere(
    new_replica: NewReplica, caplog: pytest.LogCaptureFixture, unretrieved: list[dict[str, Any]]
) -> None:
    replica = new_replica()
    async with replica.running():
        key, turn_id = await _writing(replica)
        feed = replica.feeds.get(key)
        assert feed is not None
        preview = feed.preview
        assert preview is not None
        await _cancel(replica, key, turn_id)
        await replica.ended(key, turn_id)
        log = replica.payloads(key)
        await _release(replica)
        assert preview.text() == "Once"
        assert feed.preview is None
        assert replica.payloads(key) == log
        assert not [record for record in caplog.records if record.levelno > logging.WARNING]
    gc.collect()
    assert not unretrieved


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
async def test_c1_the_error_of_a_call_that_was_left_behind_is_dropped(
    new_replica: NewReplica,
    error: type[BaseException],
    caplog: pytest.LogCaptureFixture,
    unretrieved: list[dict[str, Any]],
) -> None:
    replica = new_replica()
    async with replica.running():
        key, turn_id = await _writing(replica)
        replica.model.error = error
        await _cancel(replica, key, turn_id)
        await replica.ended(key, turn_id)
        await _release(replica)
        assert not [record for record in caplog.records if record.levelno > logging.WARNING]
        replica.model.error = None
        _, turn = await replica.turn()
        assert turn.state is TurnState.COMPLETED
    gc.collect()
    assert not unretrieved


async def test_c1_a_turn_fails_in_time_though_its_model_swallows_its_deadline(new_replica: NewReplica) -> None:
    replica = new_replica(answer_time=timedelta(milliseconds=50))
    async with replica.running():
        key, turn_id = await _writing(replica)
        async with asyncio.timeout(IN_TIME):
            turn = await replica.ended(key, turn_id)
        assert turn.error is not None
        assert (turn.state, turn.error.code) == (TurnState.FAILED, Code.LLM_TIMEOUT)
        assert turn.error.metadata["reason"] == "TOTAL_TIMEOUT"
        await _release(replica)


async def test_c1_a_model_that_watches_no_deadline_but_can_be_cancelled_is_not_left_behind(
    new_replica: NewReplica,
) -> None:
    replica = new_replica(answer_time=timedelta(milliseconds=50))
    async with replica.running():
        replica.model.goes_on.clear()
        async with asyncio.timeout(IN_TIME):
            _, turn = await replica.turn()
        assert turn.error is not None
        assert turn.error.code is Code.LLM_TIMEOUT
        assert "turnkeeper.detached_calls" not in replica.meters.read()


async def test_c1_a_drain_hands_over_a_turn_whose_model_swallows_the_cut(new_replica: NewReplica) -> None:
    replica = new_replica()
    async with replica.running():
        key, turn_id = await _writing(replica)
        async with asyncio.timeout(IN_TIME):
            await replica.worker.drain(grace=0.01)
        turn = await replica.store.turn(key, turn_id)
        assert turn is not None
        assert turn.state is TurnState.RUNNING
        assert not (await head_of(replica.store, key)).owned
        assert not list(replica.held_leases)
    await _release(replica)


async def test_c1_a_worker_ends_though_a_model_swallows_every_cancellation(new_replica: NewReplica) -> None:
    replica = new_replica()
    async with asyncio.timeout(IN_TIME), replica.running():
        await _writing(replica)
    await _release(replica)


async def test_c1_a_worker_ends_though_a_tool_swallows_every_cancellation(new_replica: NewReplica) -> None:
    replica = new_replica()
    replica.model.tool, replica.tools.error = "act", None
    async with asyncio.timeout(IN_TIME), replica.running():
        await replica.accepted()
        await replica.tools.started.wait()
    replica.tools.released.set()


async def test_c1_late_results_stop_though_a_tool_swallows_its_cancellation(new_replica: NewReplica) -> None:
    replica, released = new_replica(), asyncio.Event()

    async def stubborn() -> Finished:
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()
        raise ValueError

    left: set[asyncio.Task[Any]] = set()
    late = LateResults(replica.store, replica.log_writer, detached=left)
    call = a_call(a_session_key(), tool="act", tool_class=ToolClass.IRREVERSIBLE)
    tool = asyncio.create_task(stubborn())
    late.add([OrphanedCall(call=call, tool=tool)])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with asyncio.timeout(IN_TIME):
        await late.stop()
    assert left == {tool}
    released.set()
    await asyncio.wait([tool])
