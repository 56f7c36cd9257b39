"""D.1, D.2: a majority that has each write seconds late costs turns nothing but time."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests import harness
from tests.chaos import cluster
from tests.chaos.cluster import Cluster
from tests.chaos.faults.database import replication_paused
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS
from tests.e2e.support.polling import eventually
from tests.status_details import refused
from turnkeeper.pb.v1 import chat_pb2

DATABASE = "slow"
TURNS = 8
SCRIPT = """
[[reply]]
match = "^fills"
first_delay = "60s"
text = "Never said."

[[reply]]
text = "You said: {user}"
"""
PATIENT = ("--agents", str(AGENTS), "--lease", "20s", "--sweep", "1s", "--poll", "500ms")
FULL = ("--concurrency", "1", "--accept-wait", "10m")
"""Room for one turn, and patience with those behind it: others claim them."""


@pytest_asyncio.fixture
async def replica_set(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Yields three databases, and no servers."""
    plan = cluster.Plan(logs=tmp_path / "logs", agents=AGENTS, servers=0, clocks=False)
    async with cluster.running(plan) as running:
        yield running


@pytest.mark.timeout(180)
async def test_d1_a_majority_that_is_2_s_late_fails_no_turn_and_loses_no_owner(replica_set: Cluster) -> None:
    """The server that takes the messages has no room: two others claim every turn."""
    uri = replica_set.database.uri
    async with (
        harness.scripted(SCRIPT) as model,
        harness.server_process(uri, DATABASE, model, flags=(*PATIENT, *FULL)) as full,
        harness.server_process(uri, DATABASE, model, flags=PATIENT),
        harness.server_process(uri, DATABASE, model, flags=PATIENT),
        harness.connect(full.address) as stubs,
    ):
        busy = await harness.create_test_session(stubs, agent="talker")
        await harness.send_message_to_session(stubs, busy, "fills it", wait=0)
        sessions = [await harness.create_test_session(stubs, agent="talker") for _ in range(TURNS)]
        async with replica_set.database.slow_majority(seconds=2):
            turns = await asyncio.gather(
                *(harness.send_message_to_session(stubs, session, session, wait=0) for session in sessions)
            )
            ended = await asyncio.gather(
                *(harness.wait_for_turn(stubs, turn.session_id, turn.turn_id, seconds=100) for turn in turns)
            )
        assert [harness.answer_of(turn) for turn in ended] == [f"You said: {session}" for session in sessions]
        assert [turn.attempt for turn in ended] == [1] * TURNS
        for session in sessions:
            assert "attempt_superseded" not in harness.kinds(await harness.all_events(stubs, session))
        assert len(model.exchanges.all()) == 1 + TURNS, "each turn called its model once"
    await check(uri, DATABASE)


@pytest.mark.timeout(120)
async def test_d2_a_message_that_a_majority_has_after_its_caller_gave_up_is_answered(replica_set: Cluster) -> None:
    uri = replica_set.database.uri
    async with (
        harness.scripted(SCRIPT) as model,
        harness.server_process(uri, DATABASE, model, flags=(*PATIENT, "--lease", "60s")) as server,
        harness.connect(server.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="talker")
        async with replication_paused(await replica_set.database.secondaries()):
            with refused("SERVICE_UNAVAILABLE"):
                await harness.send_message_to_session(stubs, session, "late", wait=0, request_id="late")

        async def completed() -> chat_pb2.Turn | None:
            listed = await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))
            return next((turn for turn in listed.turns if turn.state == chat_pb2.TURN_STATE_COMPLETED), None)

        await eventually(completed)
        turn = await harness.send_message_to_session(stubs, session, "late", request_id="late")
        assert (harness.answer_of(turn), turn.attempt) == ("You said: late", 1)
        assert len(model.exchanges.all()) == 1
    await check(uri, DATABASE)
