"""Costs in numbers of commands and events that hold on any machine."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from pymongo import AsyncMongoClient, monitoring

from tests import harness
from tests.e2e.support.audit_seals import sealed
from tests.e2e.support.environment import AGENTS, Environment
from tests.e2e.support.stream_reader import Reader, stream, watch
from tests.harness import Stubs
from tests.integration.mongo.commands import Command, Recorder, name_of
from tests.processes import until
from turnkeeper.model.exchanges import Outcome
from turnkeeper.pb.v1 import chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUIET: dict[str, Any] = {"poll": timedelta(minutes=5), "sweep": timedelta(minutes=5), "lease": timedelta(minutes=5)}
"""Nothing happens but what a caller asks for."""
WATCHERS = 30
SCRIPT = f"""
[[reply]]
match = "add"
tool_calls = [{{ name = "add", arguments = {{ a = 1, b = 2 }} }}]

[[reply]]
match = "add"
after_tools = 1
text = "3"

[[reply]]
match = "many pieces"
text = "{"piece " * 60}"
chunk = 6
delay = "2ms"

[[reply]]
match = "few pieces"
text = "{"piece " * 60}"
chunk = 180

[[reply]]
text = "You said: {{user}}"
"""


class Costs:
    """A quiet server, and the commands that it sends to its database."""

    def __init__(self, stubs: Stubs, recorder: Recorder, *, database: str) -> None:
        self.stubs = stubs
        self.recorder = recorder
        self.database = database

    async def of_turn(self, session: str, text: str) -> Counter[str]:
        """Returns the commands of a second message, up to its answer; the first one warms everything up."""
        await harness.send_message_to_session(self.stubs, session, text)
        with self.recorder.recording() as commands:
            await harness.send_message_to_session(self.stubs, session, text)
            return Counter(name_of(command) for command in commands if not _by_chance(command))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def costs(env: Environment) -> AsyncIterator[Costs]:
    database = f"{env.database}_costs"
    recorder = Recorder(database)
    monitoring.register(recorder)
    async with (
        harness.serving(env.mongo_uri, database, env.model, agents=AGENTS, **QUIET) as running,
        harness.connect(running.address) as stubs,
    ):
        await sealed(env.mongo_uri, database)
        yield Costs(stubs, recorder, database=database)
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        await client.drop_database(database)


class TestPerformanceBaseline:
    async def test_a_plain_turn_is_two_transactions_and_few_commands(self, costs: Costs) -> None:
        session = await harness.create_test_session(costs.stubs, agent="talker")
        spent = await costs.of_turn(session, "hello")
        assert spent["commitTransaction"] == 2, "the message accepted; the answer stored and the turn ended"
        assert spent.total() <= 20, spent

    async def test_a_turn_that_runs_where_it_came_in_is_not_looked_for(self, costs: Costs) -> None:
        session = await harness.create_test_session(costs.stubs, agent="talker")
        with costs.recorder.recording() as commands:
            for _ in range(5):
                await harness.send_message_to_session(costs.stubs, session, "hello")
        assert not [command for command in commands if _claims(command)]

    async def test_a_queued_turn_is_looked_for_once(self, costs: Costs) -> None:
        session = await harness.create_test_session(costs.stubs, agent="talker")
        with costs.recorder.recording() as commands:
            await harness.send_message_to_session(costs.stubs, session, "many pieces", wait=0)
            queued = await harness.send_message_to_session(
                costs.stubs, session, "hello", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
            )
            await harness.wait_for_turn(costs.stubs, session, queued.turn_id)
            looks = len([command for command in commands if _claims(command)])
        assert 1 <= looks <= 2, "once for the step that made it claimable, perhaps once for the hint of it"

    async def test_a_turn_with_a_tool_is_four_transactions(self, costs: Costs) -> None:
        session = await harness.create_test_session(costs.stubs, agent="worker")
        spent = await costs.of_turn(session, "add")
        assert spent["commitTransaction"] == 4, "accepted; called and started; returned; answered and ended"
        assert spent.total() <= 34, spent

    async def test_a_long_answer_costs_the_database_no_more_than_a_short_one(self, costs: Costs) -> None:
        session = await harness.create_test_session(costs.stubs, agent="talker")
        assert await costs.of_turn(session, "many pieces") == await costs.of_turn(session, "few pieces")

    async def test_a_long_history_costs_no_more_commands_than_a_short_one(self, costs: Costs) -> None:
        session = await harness.create_test_session(costs.stubs, agent="talker")
        before = await costs.of_turn(session, "hello")
        for number in range(20):
            await harness.send_message_to_session(costs.stubs, session, f"hello {number}")
        assert await costs.of_turn(session, "hello") == before

    async def test_watchers_of_a_turn_cost_the_database_nothing(self, costs: Costs) -> None:
        session = await harness.create_test_session(costs.stubs, agent="talker")
        alone = await costs.of_turn(session, "many pieces")
        readers = [Reader() for _ in range(WATCHERS)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_follow(costs.stubs, session, reader)) for reader in readers]
            await until(lambda: all(reader.caught_up for reader in readers))
            watched = await costs.of_turn(session, "many pieces")
            await until(lambda: all(reader.through == readers[0].through for reader in readers))
            for task in tasks:
                task.cancel()
        assert watched == alone

    async def test_a_replay_reads_few_pages_and_sends_them_in_few_responses(self, costs: Costs) -> None:
        session = await harness.create_test_session(costs.stubs, agent="talker")
        for _ in range(50):
            await harness.send_message_to_session(costs.stubs, session, "hello")
        with costs.recorder.recording() as commands:
            reader = Reader()
            async for _ in watch(costs.stubs, session, reader, follow=False):
                pass
            reads = [command for command in commands if command.get("find") == "events"]
        assert len(reader.events) == 202
        assert reader.responses == 4
        pages = "a small page, then a large one that begins with the event before it: its history must be the same"
        assert [command["filter"]["seq"]["$gt"] for command in reads] == [0, 63], pages

    async def test_idle_watchers_share_one_question(self, env: Environment) -> None:
        database = f"{env.database}_idle"
        recorder = Recorder(database)
        monitoring.register(recorder)
        quiet = {**QUIET, "poll": timedelta(milliseconds=20)}
        async with (
            harness.serving(env.mongo_uri, database, env.model, agents=AGENTS, **quiet) as running,
            harness.connect(running.address) as stubs,
            asyncio.TaskGroup() as group,
        ):
            await sealed(env.mongo_uri, database)
            readers = {await harness.create_test_session(stubs, agent="talker"): Reader() for _ in range(40)}
            tasks = [group.create_task(_follow(stubs, session, reader)) for session, reader in readers.items()]
            await until(lambda: all(reader.caught_up for reader in readers.values()))
            with recorder.recording() as commands:
                await until(lambda: len(_reads_of_sessions(commands)) >= 5)
                finds = _reads_of_sessions(commands)
                others = [command for command in commands if "aggregate" not in command and not _by_chance(command)]
            for task in tasks:
                task.cancel()
        assert {len(find["filter"]["_id"]["$in"]) for find in finds} == {40}
        assert not others
        async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
            await client.drop_database(database)

    async def test_every_watcher_gets_the_bytes_that_are_stored(self, env: Environment, costs: Costs) -> None:
        session = await harness.create_test_session(costs.stubs, agent="talker")
        streams = [asyncio.create_task(_raw(costs.stubs, session)) for _ in range(5)]
        await harness.send_message_to_session(costs.stubs, session, "many pieces")
        await costs.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
        live = await asyncio.gather(*streams)
        late = await _raw(costs.stubs, session)
        async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
            its = {"tenant": harness.TENANT, "session_id": session}
            events = client[costs.database]["events"].find(its).sort("seq")
            stored = [event["payload"] async for event in events]
        for received in (*live, late):
            place = 0
            for payload in stored:
                place = received.index(payload, place) + len(payload)

    async def test_what_is_ready_goes_into_one_response(self, costs: Costs) -> None:
        session, reader = await harness.create_test_session(costs.stubs, agent="talker"), Reader(whole=False)
        async for _ in stream(costs.stubs, session, "few pieces", reader, previews=False):
            pass
        assert reader.responses <= 3, "accepted; caught up; answered and ended"
        assert len(reader.events) == 4

    async def test_text_is_delivered_while_the_model_still_streams(self, env: Environment, costs: Costs) -> None:
        session, reader, playing = (
            await harness.create_test_session(costs.stubs, agent="talker"),
            Reader(whole=False),
            0,
        )
        interval = Duration()  # none between two deltas
        async for _ in stream(costs.stubs, session, "many pieces", reader, delta_interval=interval):
            if reader.deltas:
                playing += env.model.exchanges.all()[-1].outcome is Outcome.PLAYING
        assert playing > 10, "responses with text that came before the model had ended"


def _claims(command: Command) -> bool:
    return command.get("aggregate") == "heads" and "wake_at" in command["pipeline"][0]["$match"]


def _by_chance(command: Command) -> bool:
    """Returns True for commands that depend on timing, or that all sessions of a replica share.

    An owner polls each second for cancellations. A waiting caller reads again if a notification is faster than the
    commit's result. A new server session is registered once. Notifications and previews are one stream and one insert
    for all. A replica writes its heartbeat, and reads the others', now and then; it looks for freezes, for denials of
    tools and for records that have no seal. It asks for the time with each heartbeat, and whether the database answers.
    """
    of_all = command[name_of(command)] in ("replicas", "freezes", "denials", "audit_records")
    shared = "getMore" in command or command.get("insert") == "partials" or of_all
    return shared or name_of(command) in ("ping", "hello") or command.get("find") in ("heads", "turns")


def _reads_of_sessions(commands: list[Command]) -> list[Command]:
    """Returns the reads of heads by their sessions. A look for turns that wait names none."""
    return [command for command in commands if command.get("find") == "heads" and "_id" in command["filter"]]


async def _follow(stubs: Stubs, session: str, reader: Reader) -> None:
    async for _ in watch(stubs, session, reader):
        pass


async def _raw(stubs: Stubs, session: str) -> bytes:
    """Returns the bytes of a whole watch."""
    channel: Any = stubs.channel
    call = channel.unary_stream("/turnkeeper.v1.SessionService/WatchEvents")
    request = session_pb2.WatchEventsRequest(session_id=session, follow=True, previews=True)
    return b"".join([response async for response in call(request.SerializeToString())])
