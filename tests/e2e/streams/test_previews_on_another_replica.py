"""Previews across replicas: watchers of one server get the text that a model streams to another one."""

import asyncio
import contextlib
import copy
import statistics
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment
from tests.e2e.support.faults import refused_command
from tests.e2e.support.server_processes import doomed, freeze, thaw
from tests.e2e.support.stream_reader import Reader, stream, watch
from tests.harness import Stubs
from tests.processes import until, until_call
from turnkeeper.pb.v1 import chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEASE = 1.5
POLL = 60
"""Seconds: nothing here is found by the polls for events."""
SETTINGS = {"poll": timedelta(seconds=POLL), "lease": timedelta(seconds=LEASE)}
STORY = "Я 海🙂é: ß и ещё немного слов, сказанных не спеша. "
TALE = STORY * 3
SCRIPT = f"""
[[reply]]
match = "tale"
text = "{TALE}"
chunk = 2
delay = "30ms"

[[reply]]
match = "stalls"
text = "{STORY}"
chunk = 3
fail = "stall"
fail_after = {-(-len(STORY) // 3)}

[[reply]]
match = "is lost"
text = "{STORY}"
chunk = 3
fail = "stall"
fail_after = {-(-len(STORY) // 3)}
times = 1

[[reply]]
match = "is lost"
text = "{TALE}"
chunk = 3
delay = "30ms"

[[reply]]
match = "breaks"
text = "{STORY}"
chunk = 2
delay = "30ms"
fail = "cut"
fail_after = 20
times = 1

[[reply]]
match = "breaks"
text = "{TALE}"
chunk = 4
delay = "30ms"

[[reply]]
match = "acts"
text = "First I look at the clock, and say so at length."
tool_calls = [{{ name = "current_time" }}]
chunk = 1
delay = "10ms"

[[reply]]
match = "acts"
after_tools = 1
text = "{STORY}"
chunk = 1
delay = "20ms"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other(env: Environment) -> AsyncIterator[Stubs]:
    async with env.another() as stubs:
        yield stubs


class TestPreviewsOnAnotherReplica:
    async def test_deltas_arrive_while_another_server_calls_the_model(self, env: Environment, other: Stubs) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        near, far = Reader(), Reader()
        arrived: dict[int, dict[int, float]] = {0: {}, 1: {}}
        async with _following(env.stubs, session, near, arrived[0]), _following(other, session, far, arrived[1]):
            turn = await harness.send_message_to_session(env.stubs, session, "a tale", wait=30)
            await until(lambda: "turn_completed" in far.kinds and "turn_completed" in near.kinds)
        assert harness.answer_of(turn) == TALE
        assert _only_text(far) == _only_text(near) == TALE
        assert far.events == near.events
        assert len(far.deltas) > 5, "the text did not come at once"
        late = sorted(
            min(at for offset, at in arrived[1].items() if offset >= byte) - at
            for byte, at in arrived[0].items()
            if any(offset >= byte for offset in arrived[1])
        )
        assert late[len(late) // 2] < 2.0, f"{late[len(late) // 2]:.1f} s late, when a quarter of a second is promised"

    async def test_every_cursor_inside_a_message_goes_on_at_the_other_server(
        self, env: Environment, other: Stubs
    ) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="talker"), Reader(whole=False)
        resumed: list[Reader] = []
        request_id = harness.new_request_id()
        async with asyncio.TaskGroup() as group:
            async for _ in stream(env.stubs, session, "a tale", reader, request_id=request_id):
                if len(resumed) < 40:
                    resumed.append(copy.deepcopy(reader))
                    group.create_task(_to_the_end(other, session, resumed[-1], request_id))
        assert len(resumed) == 40
        for one_reader in (reader, *resumed):
            assert _only_text(one_reader) == one_reader.screen() == TALE
            assert one_reader.restarts == 0
            assert one_reader.kinds == reader.kinds
        assert statistics.median(len(one_reader.deltas) for one_reader in resumed) > 5, (
            "they waited for the whole message"
        )

    async def test_a_late_reader_gets_the_text_so_far(self, env: Environment, other: Stubs) -> None:
        session, turn = await _stalled(env, "stalls")
        for _ in range(2):
            reader = Reader(whole=False)
            async with _following(other, session, reader):
                await until(lambda reader=reader: _only_text(reader) == STORY)  # type: ignore[misc]
        await other.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))

    async def test_without_notifications_the_text_comes_by_a_poll(self, env: Environment) -> None:
        async with (
            refused_command(env.mongo_uri, "aggregate", errorCode=13) as forbidden,
            env.another(poll=timedelta(milliseconds=100)) as poller,
        ):
            await forbidden.entered()
            session, turn = await _stalled(env, "stalls")
            reader = Reader(whole=False)
            async with _following(poller, session, reader):
                await until(lambda: _only_text(reader) == STORY)
            await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))

    async def test_a_message_after_tools_is_previewed_too(self, env: Environment, other: Stubs) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="worker"), Reader()
        async with _following(other, session, reader):
            await harness.send_message_to_session(env.stubs, session, "acts", wait=20)
            await until(lambda: "turn_completed" in reader.kinds)
        assert len(reader.texts) == 2
        assert len(reader.deltas) > 4

    async def test_a_broken_attempt_is_not_continued(self, env: Environment, other: Stubs) -> None:
        session, reader, few = await harness.create_test_session(env.stubs, agent="stubborn"), Reader(), Reader()
        few.whole = False
        async with (
            _following(other, session, reader),
            _following(other, session, few, types=("turn_completed",)),
        ):
            await harness.send_message_to_session(env.stubs, session, "breaks", wait=30)
            await until(lambda: "turn_completed" in reader.kinds and "turn_completed" in few.kinds)
        *_, last = reader.texts.values()
        assert last.decode() == TALE
        assert len(reader.texts) == 2, "the first attempt was previewed"
        assert (reader.restarts, reader.screen()) == (few.restarts, few.screen()) == (1, TALE)

    async def test_preview_chunks_are_not_history(self, env: Environment, other: Stubs) -> None:
        """I10: stored preview chunks are neither events nor part of a request to the model."""
        session, turn = await _stalled(env, "stalls")
        async with AsyncMongoClient[dict[str, object]](env.mongo_uri) as client:
            assert await client[env.database]["partials"].count_documents({"session_id": session}) > 0
        assert "message_completed" not in harness.kinds(await harness.all_events(other, session))
        await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))

    async def test_a_database_that_takes_no_previews_delays_no_turn(self, env: Environment, other: Stubs) -> None:
        """Its validator stands for any cause; the other replicas get the whole message."""
        async with AsyncMongoClient[dict[str, object]](env.mongo_uri) as client:
            database = client[env.database]
            await database.command({"collMod": "partials", "validator": {"never": True}})
            try:
                session, reader = await harness.create_test_session(env.stubs, agent="talker"), Reader()
                async with _following(other, session, reader):
                    turn = await harness.send_message_to_session(env.stubs, session, "a tale", wait=30)
                    await until(lambda: "turn_completed" in reader.kinds)
            finally:
                await database.command({"collMod": "partials", "validator": {}})
        assert harness.answer_of(turn) == _only_text(reader) == TALE
        assert len(reader.deltas) == 1


async def test_a_server_that_starts_later_delivers_the_text_so_far(
    mongo_uri: str, database_name: str, env: Environment
) -> None:
    """A single replica stores no previews; once there is another, the text so far is published."""
    settings: dict[str, Any] = {"agents": AGENTS, "lease": timedelta(seconds=LEASE)}
    async with (
        harness.serving(mongo_uri, database_name, env.model, **settings) as alone,
        harness.connect(alone.address) as stubs,
        AsyncMongoClient[dict[str, str]](mongo_uri) as client,
    ):
        partials = client[database_name]["partials"]
        session = await harness.create_test_session(stubs, agent="talker")
        ended = await harness.send_message_to_session(stubs, session, "a tale", wait=30)
        assert harness.answer_of(ended) == TALE
        session, reader = await harness.create_test_session(stubs, agent="talker"), Reader(whole=False)
        turn = await harness.send_message_to_session(stubs, session, "stalls", wait=0)
        async with _following(stubs, session, reader):
            await until(lambda: _only_text(reader) == STORY)
        assert await partials.count_documents({}) == 0
        async with (
            harness.serving(mongo_uri, database_name, env.model, **settings) as later,
            harness.connect(later.address) as others,
        ):
            reader = Reader(whole=False)
            async with _following(others, session, reader):
                await until(lambda: _only_text(reader) == STORY)
        await stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))


async def test_the_text_of_a_lost_owner_is_followed_by_the_next_ones(env: Environment, other: Stubs) -> None:
    """Frozen in its message: its attempt is superseded, and its later text is delivered to no reader."""
    session, turn_id, readers = "", "", [Reader(), Reader()]
    async with doomed(env) as server, harness.connect(server.address) as stubs:
        session = await harness.create_test_session(stubs, agent="talker")
        async with (
            _following(env.stubs, session, readers[0]),
            _following(other, session, readers[1]),
        ):
            turn_id = (await harness.send_message_to_session(stubs, session, "is lost", wait=0)).turn_id
            await until(lambda: all(_only_text(reader) == STORY for reader in readers))
            freeze(server)
            await until(lambda: all("turn_completed" in reader.kinds for reader in readers), timeout=30)
            thaw(server)
    for reader in readers:
        first, second = reader.texts.values()
        assert (first.decode(), second.decode()) == (STORY, TALE)
        assert (reader.restarts, reader.screen()) == (1, TALE)
        assert len(reader.deltas) > 6
    ended = await harness.wait_for_turn(env.stubs, session, turn_id)
    assert harness.answer_of(ended) == TALE


async def _stalled(env: Environment, words: str) -> tuple[str, chat_pb2.Turn]:
    """Starts a turn whose model has sent the story and is silent now. Waits until all of it is published."""
    session, reader = await harness.create_test_session(env.stubs, agent="talker"), Reader(whole=False)
    turn = await harness.send_message_to_session(env.stubs, session, words, wait=0)
    async with _following(env.stubs, session, reader):
        await until(lambda: _only_text(reader) == STORY)
    async with AsyncMongoClient[dict[str, str]](env.mongo_uri) as client:
        partials = client[env.database]["partials"]

        async def is_published() -> bool:
            parts = partials.find({"session_id": session}).sort("offset")
            return "".join([partial["text"] async for partial in parts]) == STORY

        await until_call(is_published)
    return session, turn


@contextlib.asynccontextmanager
async def _following(
    stubs: Stubs, session: str, reader: Reader, arrived: dict[int, float] | None = None, types: tuple[str, ...] = ()
) -> AsyncIterator[None]:
    """Watches in the background, from the caught-up on. `arrived`: when the text reached which byte."""

    async def follow() -> None:
        async for _ in watch(stubs, session, reader, types=types):
            if arrived is not None and reader.texts:
                arrived.setdefault(len(next(iter(reader.texts.values()))), time.monotonic())

    async with asyncio.TaskGroup() as group:
        following = group.create_task(follow())
        await until(lambda: reader.caught_up == 1)
        yield
        following.cancel()


async def _to_the_end(stubs: Stubs, session: str, reader: Reader, request_id: str) -> None:
    async for _ in stream(stubs, session, "a tale", reader, request_id=request_id):
        pass


def _only_text(reader: Reader) -> str:
    return b"".join(reader.texts.values()).decode()
