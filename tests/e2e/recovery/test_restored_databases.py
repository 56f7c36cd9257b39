"""A database that is restored to an older state under running servers: what is lost is lost, and nothing is mixed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from grpc import aio
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.backups import Way, backup_of
from tests.e2e.support.environment import Environment, transcript
from tests.harness import Stubs
from tests.processes import until
from tests.status_details import refused
from turnkeeper.pb.v1 import chat_pb2, message_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
SETTINGS = {"identity": "none"}
"""Without a second tenant: a restoration takes time, and sweepers change what waits while they see only half of it."""
COMPLETED = chat_pb2.TURN_STATE_COMPLETED


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other(env: Environment) -> AsyncIterator[Stubs]:
    async with env.another() as stubs:
        yield stubs


async def talk(stubs: Stubs, session: str, *words: str, **more: Any) -> None:
    """Runs a turn for each of the texts."""
    for text in words:
        turn = await harness.send_message_to_session(stubs, session, text, **more)
        assert turn.state == COMPLETED, turn


async def listed(stubs: Stubs, session: str) -> list[str]:
    """Returns the texts that ListMessages shows, oldest first."""
    request = session_pb2.ListMessagesRequest(session_id=session, page_size=100)
    messages = (await stubs.sessions.ListMessages(request)).messages
    roles = {message_pb2.ROLE_USER: "user", message_pb2.ROLE_ASSISTANT: "assistant", message_pb2.ROLE_TOOL: "tool"}
    return [f"{roles[message.role]}: {message.content[0].text}" for message in messages if message.content]


def conversation_of(*words: str) -> list[str]:
    """Returns the conversation of turns with these texts."""
    return [line for text in words for line in (f"user: {text}", f"assistant: You said: {text}")]


def sent_to_model(env: Environment, words: str) -> list[str]:
    """Returns the messages of the last request to the model that has these words."""
    return [line for line in transcript(env.model_requests(words)[-1]) if not line.startswith("system: ")]


async def numbers(stubs: Stubs, session: str) -> list[int]:
    return [event.sequence for event in await harness.all_events(stubs, session)]


@pytest.mark.parametrize("way", ["documents", "collections"])
async def test_lost_messages_are_neither_listed_nor_sent_to_the_model(env: Environment, other: Stubs, way: Way) -> None:
    first, lost, new = (f"b-{way}-{name}" for name in ("first", "lost", "new"))
    session = await harness.create_test_session(env.stubs, agent="talker")
    await talk(env.stubs, session, first)
    before = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
    async with backup_of(env.mongo_uri, env.database) as backup:
        await talk(env.stubs, session, lost, f"{lost}-too")
        assert await listed(env.stubs, session) == conversation_of(first, lost, f"{lost}-too")
        await backup.restore(way)
    assert await listed(env.stubs, session) == conversation_of(first)
    assert await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session)) == before
    await talk(env.stubs, session, new)
    assert sent_to_model(env, new) == [*conversation_of(first), f"user: {new}"]
    for stubs in (env.stubs, other):
        assert await listed(stubs, session) == conversation_of(first, new)
        assert await numbers(stubs, session) == list(range(1, before.session.last_sequence + 5))


async def test_another_history_of_the_same_length_is_not_taken_for_the_lost_one(env: Environment, other: Stubs) -> None:
    """All numbers fit: the last event's, the fence, the revision."""
    session = await harness.create_test_session(env.stubs, agent="talker")
    await talk(env.stubs, session, "h-first")
    async with backup_of(env.mongo_uri, env.database) as backup:
        await talk(env.stubs, session, "h-lost")
        assert await listed(env.stubs, session) == conversation_of("h-first", "h-lost")
        lost = await numbers(env.stubs, session)
        await backup.restore()
    await talk(other, session, "h-other")
    assert await numbers(other, session) == lost
    assert await listed(env.stubs, session) == conversation_of("h-first", "h-other")
    await talk(env.stubs, session, "h-new")
    assert sent_to_model(env, "h-new") == [*conversation_of("h-first", "h-other"), "user: h-new"]


async def test_the_next_message_rests_on_another_history_of_the_same_length(env: Environment, other: Stubs) -> None:
    """As above, but nothing is read in between: the message is decided on what the replica knows."""
    session = await harness.create_test_session(env.stubs, agent="talker")
    await talk(env.stubs, session, "n-first")
    async with backup_of(env.mongo_uri, env.database) as backup:
        await talk(env.stubs, session, "n-lost")
        await backup.restore()
    await talk(other, session, "n-other")
    await talk(env.stubs, session, "n-new")
    assert sent_to_model(env, "n-new") == [*conversation_of("n-first", "n-other"), "user: n-new"]
    assert await listed(other, session) == conversation_of("n-first", "n-other", "n-new")


async def test_a_turn_that_runs_during_the_restoration_writes_nothing_behind_the_older_log(
    env: Environment, other: Stubs
) -> None:
    session = await harness.create_test_session(env.stubs, agent="worker")
    await talk(env.stubs, session, "r-first")
    async with backup_of(env.mongo_uri, env.database) as backup:
        lost = await harness.send_message_to_session(env.stubs, session, "hold r-lost", wait=0)
        await env.tool_control.started("r-lost")
        await backup.restore()
    await talk(other, session, "r-other")
    env.tool_control.release("r-lost")
    await talk(env.stubs, session, "r-new")
    assert sent_to_model(env, "r-new") == [*conversation_of("r-first", "r-other"), "user: r-new"]
    events = await harness.all_events(other, session)
    assert lost.turn_id not in {event.turn_id for event in events}
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert len(env.model_requests("hold r-lost")) == 1


async def test_a_turn_that_was_running_in_the_copy_is_taken_up_from_there(env: Environment) -> None:
    """Its owner knows later steps than the log: they do not count any more."""
    session = await harness.create_test_session(env.stubs, agent="worker")
    running = await harness.send_message_to_session(env.stubs, session, "hold c-running", wait=0)
    await env.tool_control.started("c-running")
    async with backup_of(env.mongo_uri, env.database) as backup:
        await harness.send_message_to_session(env.stubs, session, "c-queued", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE)
        await backup.restore()
    env.tool_control.release("c-running")
    turn = await harness.wait_for_turn(env.stubs, session, running.turn_id)
    assert turn.state == COMPLETED
    lines = await listed(env.stubs, session)
    assert "user: c-queued" not in lines
    last = await numbers(env.stubs, session)
    assert last == list(range(1, len(last) + 1))


# --- readers ---------------------------------------------------------------------------------------------------------


class Watch:
    """A stream that is read until it has caught up, and then further."""

    def __init__(self, stubs: Stubs, session: str, **start: Any) -> None:
        self.sequences: list[int] = []
        self.cursor = ""
        self._call = stubs.sessions.WatchEvents(
            session_pb2.WatchEventsRequest(session_id=session, follow=True, previews=True, **start)
        )

    async def catch_up(self) -> "Watch":
        while not (await self._next()).caught_up:
            pass
        return self

    async def until(self, sequence: int) -> None:
        """Reads until this event has come."""
        while sequence not in self.sequences:
            await self._next()

    async def end(self) -> None:
        """Reads until the stream ends. Raises its error."""
        while True:
            await self._next()

    async def _next(self) -> session_pb2.WatchEventsResponse:
        async with asyncio.timeout(15):
            received = await self._call.read()
        if not isinstance(received, session_pb2.WatchEventsResponse):
            raise await _error_of(self._call)
        response = received
        self.sequences += [event.sequence for event in response.events if event.sequence]
        self.cursor = response.cursor
        return response

    def cancel(self) -> None:
        self._call.cancel()


async def _error_of(call: Any) -> Exception:
    code, details = await call.code(), await call.details()
    return aio.AioRpcError(code, await call.initial_metadata(), await call.trailing_metadata(), details)


async def cursor_of(stubs: Stubs, session: str) -> str:
    """Returns the cursor at the log's end."""
    watch = await Watch(stubs, session).catch_up()
    watch.cancel()
    return watch.cursor


async def list_events(stubs: Stubs, session: str, after: str) -> list[int]:
    page = await stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=session, after=after))
    return [event.sequence for event in page.events]


@pytest.mark.parametrize("length", ["shorter", "equal", "longer"])
async def test_a_reader_of_the_lost_events_learns_that_they_are_gone(
    env: Environment, other: Stubs, length: str
) -> None:
    """A stream that is open, and a cursor that is kept, on each replica. The restored log may have grown again."""
    new = {"shorter": (), "equal": ("e-new",), "longer": ("l-new", "l-newer")}[length]
    session = await harness.create_test_session(env.stubs, agent="talker")
    await talk(env.stubs, session, "r-one")
    kept = await cursor_of(env.stubs, session)
    async with backup_of(env.mongo_uri, env.database) as backup:
        await talk(env.stubs, session, "r-lost")
        lost = await cursor_of(other, session)
        streams = [await Watch(stubs, session).catch_up() for stubs in (env.stubs, other)]
        await backup.restore()
    await talk(other, session, *new)
    assert (await list_events(other, session, kept)) == list(range(7, 7 + 4 * len(new)))
    last = len(await harness.all_events(other, session))
    for stream in streams:
        with refused("CURSOR_EXPIRED") as refusal:
            await stream.end()
        assert 6 <= int(refusal.details.metadata["head_sequence"]) <= last
        assert stream.sequences == list(range(1, 11))
    for stubs in (env.stubs, other):
        for read in (list_events(stubs, session, lost), Watch(stubs, session, after=lost).catch_up()):
            with refused("CURSOR_EXPIRED") as refusal:
                await read
            assert refusal.details.metadata["head_sequence"] == str(last)
            assert "restored" in refusal.details.message
        again = await Watch(stubs, session).catch_up()
        again.cancel()
        assert again.sequences == list(range(1, last + 1))
        assert await list_events(stubs, session, kept) == list(range(7, last + 1))


async def test_a_reader_learns_that_its_events_are_gone_though_they_are_restored_last(
    env: Environment, other: Stubs
) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    await talk(env.stubs, session, "o-one")
    async with backup_of(env.mongo_uri, env.database) as backup:
        await talk(env.stubs, session, "o-lost")
        streams = [await Watch(stubs, session).catch_up() for stubs in (env.stubs, other)]
        await backup.restore(without=frozenset({"events"}))
        for stream in streams:
            with refused("CURSOR_EXPIRED") as refusal:
                await stream.end()
            assert refusal.details.metadata["head_sequence"] == "6"
        await backup.restore()


async def test_a_reader_of_what_is_still_there_goes_on(env: Environment, other: Stubs) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    await talk(env.stubs, session, "g-one")
    async with backup_of(env.mongo_uri, env.database) as backup:
        watches = [await Watch(stubs, session).catch_up() for stubs in (env.stubs, other)]
        await backup.restore()
    await talk(env.stubs, session, "g-two")
    for watch in watches:
        await watch.until(10)
        watch.cancel()
        assert watch.sequences == list(range(1, 11))


async def test_a_repeat_of_a_lost_message_is_a_new_one(env: Environment) -> None:
    """Its record is lost with it: the answer is of the restored log, and is the same from then on."""
    session = await harness.create_test_session(env.stubs, agent="talker")
    await talk(env.stubs, session, "i-one")
    async with backup_of(env.mongo_uri, env.database) as backup:
        await talk(env.stubs, session, "i-two", request_id="i-two")
        await backup.restore()
    for _ in range(2):
        await talk(env.stubs, session, "i-two", request_id="i-two")
        assert await listed(env.stubs, session) == conversation_of("i-one", "i-two")
    assert sent_to_model(env, "i-two") == [*conversation_of("i-one"), "user: i-two"]


async def test_a_caller_that_waits_for_a_lost_turn_is_not_told_that_it_is_done(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="worker")
    await talk(env.stubs, session, "w-one")
    async with backup_of(env.mongo_uri, env.database) as backup:
        lost = await harness.send_message_to_session(env.stubs, session, "hold w-lost", wait=0)
        await env.tool_control.started("w-lost")
        waiting = asyncio.create_task(harness.wait_for_turn(env.stubs, session, lost.turn_id))
        await backup.restore()
    env.tool_control.release("w-lost")
    with refused("TURN_NOT_FOUND"):
        await waiting


async def test_a_run_whose_calls_are_not_restored_yet_stops_and_the_turn_goes_on(
    env: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    """Who restores a database does so collection by collection: a run may end its call in between."""
    session = await harness.create_test_session(env.stubs, agent="worker")
    turn = await harness.send_message_to_session(env.stubs, session, "hold h-half", wait=0)
    await env.tool_control.started("h-half")
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        calls = client[env.database]["tool_calls"]
        taken = await calls.find({"session_id": session}).to_list()
        await calls.delete_many({"session_id": session})
        env.tool_control.release("h-half")
        await until(lambda: "lease was lost" in caplog.text)
        await calls.insert_many(taken)
    ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    assert ended.state == COMPLETED
