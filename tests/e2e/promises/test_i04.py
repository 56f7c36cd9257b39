"""I4: at most one owner's writes are accepted in a session, and fences only grow.

The owner is frozen beyond its lease, at three places at once; another server finishes; the owner goes on where it was.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from grpc import aio
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import Environment
from tests.e2e.support.server_processes import LEASE, SWEEP, doomed, freeze, thaw
from tests.e2e.support.stream_reader import Reader, watch
from tests.harness import Stubs
from tests.processes import until
from turnkeeper.model.exchanges import Outcome
from turnkeeper.pb.v1 import chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"lease": timedelta(seconds=LEASE), "sweep": timedelta(seconds=SWEEP)}
TEXT = "What the owner writes when its lease is over."
SCRIPT = rf"""
[[reply]]
match = "in a message"
text = "{TEXT}"
chunk = 1
delay = "80ms"
times = 1

[[reply]]
match = "before an answer"
first_delay = "700ms"
text = "{TEXT}"
times = 1

[[reply]]
match = "in a tool"
tool_calls = [{{ name = "hold_idempotent", arguments = {{ label = "frozen" }} }}]

[[reply]]
match = "in a tool"
after_tools = 1
text = "Told: {{tool_result}}"

[[reply]]
match = "(?:message|answer)$"
text = "Another answer."

[[reply]]
text = "You said: {{user}}"
"""
PLACES = {
    "in a message": "Another answer.",
    "before an answer": "Another answer.",
    "in a tool": "Told: frozen is done",
}
"""Where the owner was frozen, and what the other server answers."""


@dataclass(slots=True)
class Thawed:
    """Lets the frozen owner go on, and waits until it has caught up."""

    owner: Stubs
    turns: dict[str, chat_pb2.Turn]
    readers: dict[str, Reader]
    """On the owner, all the time."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def thawed(env: Environment) -> AsyncIterator[Thawed]:
    turns: dict[str, chat_pb2.Turn] = {}
    readers = {words: Reader() for words in PLACES}
    async with doomed(env) as server, harness.connect(server.address) as stubs, asyncio.TaskGroup() as group:
        for words, reader in readers.items():
            session = await harness.create_test_session(stubs, agent="worker")
            turns[words] = await harness.send_message_to_session(stubs, session, words, wait=0)
            group.create_task(_follow(stubs, session, reader))
        await env.tool_control.started("frozen")
        await env.wait_for_model_requests("before an answer")
        await until(lambda: len(readers["in a message"].deltas) > 3)
        freeze(server)
        await env.tool_control.started("frozen", times=2)
        env.tool_control.release("frozen")
        for turn in turns.values():
            ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
            assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        thaw(server)
        async with asyncio.timeout(10):
            await env.model.exchanges.until(
                lambda exchanges: all(exchange.outcome is not Outcome.PLAYING for exchange in exchanges)
            )
        for turn in turns.values():
            await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=turn.session_id))
        await until(lambda: all("session_ended" in reader.kinds for reader in readers.values()))
        again = await harness.create_test_session(stubs, agent="worker")
        turn = await harness.send_message_to_session(stubs, again, "hello")
        assert harness.answer_of(turn) == "You said: hello", "the owner is as good as before"
        yield Thawed(owner=stubs, turns=turns, readers=readers)


class TestI4:
    @pytest.mark.parametrize("words", PLACES)
    async def test_i4_what_the_stale_owner_does_is_not_stored(
        self, env: Environment, thawed: Thawed, words: str
    ) -> None:
        turn = thawed.turns[words]
        kinds = harness.kinds(await harness.all_events(env.stubs, turn.session_id))
        assert kinds.count("message_completed") == (2 if words == "in a tool" else 1)
        assert kinds.count("attempt_superseded") == 1
        assert kinds[-2:] == ["turn_completed", "session_ended"]
        ended = await harness.wait_for_turn(thawed.owner, turn.session_id, turn.turn_id, seconds=0)
        assert harness.answer_of(ended) == PLACES[words]
        await check(env.mongo_uri, env.database)

    @pytest.mark.parametrize("words", PLACES)
    async def test_i4_a_watcher_of_the_stale_owner_gets_the_events_of_the_log(
        self, env: Environment, thawed: Thawed, words: str
    ) -> None:
        """The reader refuses text of a superseded attempt; it reads all the time."""
        reader = thawed.readers[words]
        assert reader.events == await harness.all_events(env.stubs, thawed.turns[words].session_id)

    async def test_i4_fences_only_grow(self, env: Environment, thawed: Thawed) -> None:
        async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
            events = client[env.database]["events"]
            for turn in thawed.turns.values():
                its = {"tenant": harness.TENANT, "session_id": turn.session_id}
                stored = await events.find(its, {"fence": 1}).sort("seq").to_list()
                fences = [event["fence"] for event in stored]
                assert fences == sorted(fences)
                assert len(set(fences)) >= 3, "one before the first owner, one each"


async def _follow(stubs: Stubs, session: str, reader: Reader) -> None:
    with contextlib.suppress(aio.AioRpcError):
        async for _ in watch(stubs, session, reader):
            pass
