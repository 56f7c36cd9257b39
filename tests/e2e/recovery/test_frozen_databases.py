"""A database that answers nothing for longer than a lease, and then goes on, costs no owner its turn."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import chat_pb2
from turnkeeper.store.embedded import EmbeddedMongo

LEASE = 2.0
FROZEN = 2 * LEASE
"""Seconds: every lease lapses meanwhile."""
DATABASE = "frozen"
SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_irreversible", arguments = { label = "{label}" } }]

[[reply]]
match = '^act (?P<label>\S+)'
first_delay = "1500ms"
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^tell'
text = "It goes on and on."
chunk = 1
delay = "300ms"

[[reply]]
text = "Told: {tool_result}"
"""
MESSAGES = ("hold {}", "act {}", "tell {}")


@contextlib.asynccontextmanager
async def frozen(database: EmbeddedMongo) -> AsyncIterator[None]:
    """Stops the database's process during the block."""
    assert database.pid is not None
    os.kill(database.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(database.pid, signal.SIGCONT)


async def begin(stubs: harness.Stubs, words: str) -> chat_pb2.Turn:
    session = await harness.create_test_session(stubs, agent="worker")
    return await harness.send_message_to_session(stubs, session, words, wait=0)


@pytest.mark.timeout(60)
async def test_i4_owners_renew_first_when_a_frozen_database_goes_on(tmp_path: Path, tool_control: ToolControl) -> None:
    """One turn of each owner runs a tool, one begins with a tool meanwhile, one gets its model's text."""
    database = EmbeddedMongo(tmp_path / "database")
    times: dict[str, Any] = {"agents": AGENTS, "lease": timedelta(seconds=LEASE)}
    async with (
        database as uri,
        harness.scripted(SCRIPT) as model,
        harness.serving(uri, DATABASE, model, **times) as one,
        harness.serving(uri, DATABASE, model, **times) as two,
        harness.connect(one.address) as first,
        harness.connect(two.address) as second,
    ):
        await asyncio.sleep(LEASE)  # until each would take over what is lost
        turns = [
            await begin(stubs, words.format(f"on-{number}"))
            for number, stubs in enumerate((first, second))
            for words in MESSAGES
        ]
        for number in range(2):
            await tool_control.started(f"on-{number}")
        async with frozen(database):
            await asyncio.sleep(FROZEN)
        await asyncio.sleep(LEASE)  # until each would take over again
        for number in range(2):
            tool_control.release(f"on-{number}")
        for turn in turns:
            ended = await harness.wait_for_turn(first, turn.session_id, turn.turn_id)
            assert (ended.state, ended.attempt) == (chat_pb2.TURN_STATE_COMPLETED, 1)
            assert "attempt_superseded" not in harness.kinds(await harness.all_events(first, turn.session_id))
        for number in range(2):
            assert len(tool_control.effects(f"on-{number}")) == 2, "the one of `hold`, and the one of `act`"
        async with AsyncMongoClient[dict[str, Any]](uri) as client:
            heads = (
                await client[DATABASE]["heads"].find({"tenant": harness.TENANT}, {"fence": 1, "lapses": 1}).to_list()
            )
        assert [(head["fence"], head["lapses"]) for head in heads] == [(1, 0)] * len(turns)
        await check(uri, DATABASE)
