"""A frozen server that goes on does no harm, and its watchers follow the servers that took over."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import Environment
from tests.e2e.support.server_processes import LEASE, SWEEP, doomed, freeze, thaw
from tests.e2e.support.stream_reader import Reader, watch
from tests.harness import Stubs
from tests.processes import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLL = 60
SETTINGS = {"lease": timedelta(seconds=LEASE), "sweep": timedelta(seconds=SWEEP), "poll": timedelta(seconds=POLL)}
STALE = "What the frozen one goes on to write, though its lease is over. "
TEXT = "What the next owner says, not in a hurry at all, for it has the turn now. "
SCRIPT = f"""
[[reply]]
match = "frozen"
text = "{STALE}"
chunk = 1
delay = "60ms"
times = 1

[[reply]]
match = "frozen"
text = "{TEXT}"
chunk = 1
delay = "40ms"

[[reply]]
text = "You said: {{user}}"
"""


async def test_i4_the_text_of_a_stale_owner_is_not_delivered(env: Environment) -> None:
    near, far = Reader(), Reader()
    async with doomed(env, "--poll", f"{POLL}s") as server, harness.connect(server.address) as stubs:
        session = await harness.create_test_session(stubs, agent="talker")
        async with _following(stubs, session, near), _following(env.stubs, session, far):
            turn = await harness.send_message_to_session(stubs, session, "frozen", wait=0)
            await until(lambda: len(near.deltas) > 3 and bool(far.deltas), timeout=20)
            freeze(server)
            await until(lambda: "attempt_superseded" in far.kinds and len(far.texts) == 2, timeout=20)
            thaw(server)
            shown = len(far.deltas)
            await until(lambda: all("turn_completed" in reader.kinds for reader in (near, far)), timeout=30)
        assert far.kinds.count("message_completed") == 1
        assert len(far.deltas) > shown, "the frozen one went on when the message was over already"
        for reader in (near, far):
            old, new = reader.texts.values()
            assert STALE.startswith(old.decode())
            assert new.decode() == TEXT
        assert near.events == far.events == await harness.all_events(env.stubs, session)
        second = list(near.texts)[1]
        assert len([delta for delta in near.deltas if delta.content_delta.message_id == second]) > 1
        ended = await harness.wait_for_turn(stubs, session, turn.turn_id, seconds=0)
        assert harness.answer_of(ended) == TEXT
    await check(env.mongo_uri, env.database)


async def test_a_server_that_was_frozen_delivers_what_it_missed(env: Environment) -> None:
    reader = Reader()
    async with doomed(env, "--poll", f"{POLL}s") as server, harness.connect(server.address) as stubs:
        session = await harness.create_test_session(env.stubs, agent="talker")
        async with _following(stubs, session, reader):
            freeze(server)
            await harness.send_message_to_session(env.stubs, session, "hello", wait=20)
            await asyncio.sleep(1.5 * LEASE)
            thaw(server)
            await until(lambda: "turn_completed" in reader.kinds, timeout=20)
            await harness.send_message_to_session(stubs, session, "hello again", wait=20)
            await until(lambda: reader.kinds.count("turn_completed") == 2, timeout=20)
        assert reader.events == await harness.all_events(env.stubs, session)


@contextlib.asynccontextmanager
async def _following(stubs: Stubs, session: str, reader: Reader) -> AsyncIterator[None]:
    async def follow() -> None:
        async for _ in watch(stubs, session, reader):
            pass

    async with asyncio.TaskGroup() as group:
        following = group.create_task(follow())
        await until(lambda: reader.caught_up == 1)
        yield
        following.cancel()
