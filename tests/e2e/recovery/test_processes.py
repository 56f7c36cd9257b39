"""Several server processes on one port: each is a replica, and together they are stopped like one server."""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS
from tests.e2e.support.polling import eventually
from tests.e2e.support.stream_reader import Reader, stream, watch
from tests.harness import Stubs
from tests.processes import accepted, alive, children, replicas, resident, until
from tests.status_details import refused
from turnkeeper.child_processes import free_port
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = """
[[reply]]
match = "story"
text = "A story that takes its time."
chunk = 1
delay = "30ms"

[[reply]]
text = "You said: {user}"
"""
AGENT = """
[[agent]]
name = "talker"
base_url = "{}"
"""
STORY = "A story that takes its time."
ONE_CONNECTION_EACH = (("grpc.use_local_subchannel_pool", 1),)


@dataclass(slots=True, kw_only=True)
class Served:
    """Two processes on one port, with names NAME-1 and NAME-2."""

    server: harness.ServerProcess
    health_port: int
    jwks_port: int
    mongo_uri: str
    database: str
    model: ScriptedModel

    @property
    def port(self) -> int:
        return int(self.server.address.rpartition(":")[2])

    @property
    def pids(self) -> list[int]:
        return replicas(self.server.pid)

    @contextlib.asynccontextmanager
    async def stubs_of(self, *pids: int) -> AsyncIterator[list[Stubs]]:
        """Stubs that are connected to these processes, in order."""
        async with contextlib.AsyncExitStack() as stack:
            connected: dict[int, Stubs] = {}
            while not connected.keys() >= set(pids):
                before = {pid: accepted(pid, self.port) for pid in pids}
                channel = aio.insecure_channel(self.server.address, options=ONE_CONNECTION_EACH)
                await stack.enter_async_context(channel)
                stubs = harness.stubs_on(channel, self.server.address)
                await stubs.sessions.ListSessions(session_pb2.ListSessionsRequest(page_size=1))
                for pid, count in before.items():
                    if accepted(pid, self.port) > count:
                        connected.setdefault(pid, stubs)
            yield [connected[pid] for pid in pids]


@contextlib.asynccontextmanager
async def serving(mongo_uri: str, *flags: str) -> AsyncIterator[Served]:
    """Afterwards the documents equal the fold of the logs, and no process of it is left."""
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    health_port, jwks_port = free_port(), free_port()
    ports = ("--health-port", str(health_port), "--jwks-port", str(jwks_port))
    flags = ("--processes", "2", *ports, "--replica", "pod", "--agents", str(AGENTS), *flags)
    async with harness.scripted(SCRIPT) as model:
        async with harness.server_process(mongo_uri, database, model, flags=flags) as server:
            served = Served(
                server=server,
                health_port=health_port,
                jwks_port=jwks_port,
                mongo_uri=mongo_uri,
                database=database,
                model=model,
            )
            pids = served.pids
            assert len(pids) == 2
            yield served
            pids += served.pids
        await until(lambda: not any(map(alive, pids)))
    await check(mongo_uri, database)
    async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
        await client.drop_database(database)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(mongo_uri: str) -> AsyncIterator[Served]:
    """Starts the processes that the tests of the module share which do not stop them."""
    async with serving(mongo_uri) as started:
        yield started


class TestOnePort:
    async def test_both_get_connections_and_each_is_a_replica_of_its_own(self, served: Served) -> None:
        async with served.stubs_of(*served.pids) as both:
            owners = [await _owner(served, stubs) for stubs in both]
        assert sorted(owners) == ["pod-1", "pod-2"]

    async def test_what_one_gave_out_another_takes(self, served: Served) -> None:
        async with served.stubs_of(*served.pids) as (one, other):
            session, *_ = [await harness.create_test_session(one, agent="talker") for _ in range(4)]
            listed = await one.sessions.ListSessions(session_pb2.ListSessionsRequest(page_size=4))
            page = await one.sessions.ListSessions(session_pb2.ListSessionsRequest(page_size=2))
            rest = await other.sessions.ListSessions(
                session_pb2.ListSessionsRequest(page_size=2, page_token=page.next_page_token)
            )
            assert [*page.sessions, *rest.sessions] == list(listed.sessions)
            reader = Reader(whole=False)
            async for _ in stream(one, session, "a story", reader):
                if len(reader.deltas) > 3:
                    break
            async for _ in watch(other, session, reader):
                if reader.completed():
                    break
        assert reader.text(reader.completed()[0].message_completed.message_id) == STORY

    async def test_they_share_the_health_port_and_no_other_program_takes_it(self, served: Served) -> None:
        reached: set[int] = set()
        async with asyncio.timeout(20), contextlib.AsyncExitStack() as stack:
            while reached != set(served.pids):
                before = {pid: accepted(pid, served.health_port) for pid in served.pids}
                channel = aio.insecure_channel(f"127.0.0.1:{served.health_port}", options=ONE_CONNECTION_EACH)
                health: Any = health_pb2_grpc.HealthStub(await stack.enter_async_context(channel))
                answered = await health.Check(health_pb2.HealthCheckRequest(service="liveness"))
                assert answered.status == health_pb2.HealthCheckResponse.SERVING
                reached |= {pid for pid, count in before.items() if accepted(pid, served.health_port) > count}
        port = ("--port", "0", "--health-port", str(served.health_port))
        status, output = await _serve(served, *port, "--processes", "2")
        assert status == 2
        assert output.endswith("another program has it. Stop that one, or choose another --health-port.\n")

    async def test_they_share_the_key_port_and_no_other_program_takes_it(self, served: Served) -> None:
        reached: set[int] = set()
        async with asyncio.timeout(20):
            while reached != set(served.pids):
                before = {pid: accepted(pid, served.jwks_port) for pid in served.pids}
                async with ClientSession() as http:
                    async with http.get(f"http://127.0.0.1:{served.jwks_port}/.well-known/jwks.json") as answered:
                        assert await answered.json() == {"keys": []}
                    reached |= {pid for pid, count in before.items() if accepted(pid, served.jwks_port) > count}
        port = ("--port", "0", "--jwks-port", str(served.jwks_port))
        for processes in ("1", "2"):
            status, output = await _serve(served, *port, "--processes", processes)
            assert status == 2
            assert output.endswith("another program has it. Stop that one, or choose another --jwks-port.\n")

    async def test_a_tool_server_without_keys_is_refused_where_they_publish_them_together(
        self, served: Served, tmp_path: Path
    ) -> None:
        """Each would sign with a key of its own, and another one would answer what verifies it."""
        catalogue = tmp_path / "catalogue.toml"
        catalogue.write_text('[[server]]\nname = "ledger"\ngrpc = "127.0.0.1:1"\nplaintext = true\n')
        port = ("--port", "0", "--jwks-port", "0", "--catalogue", str(catalogue))
        status, output = await _serve(served, *port, "--processes", "2")
        assert status == 2
        words = "server ledger: grpc needs `keys` beside it: several processes publish them at one --jwks-port"
        assert output.count(words) == 1

    async def test_the_supervisor_holds_little_memory(self, served: Served) -> None:
        """43 MiB, most of it the database's driver with `cryptography`: it has put down what reads the settings."""
        assert resident(served.server.pid) < 48 * 2**20

    async def test_a_second_server_is_refused(self, served: Served) -> None:
        for processes in ("1", "2"):
            status, output = await _serve(served, "--port", str(served.port), "--processes", processes)
            assert status == 2
            assert output.splitlines()[-1] == (
                f"turnkeeper serve: 127.0.0.1:{served.port} cannot be listened on: another program has it. "
                "Stop that one, or choose another --port."
            )

    async def test_one_that_cannot_start_ends_all_and_gives_its_reason_once(self, served: Served) -> None:
        away = ("--mongodb-uri", "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200", "--database-wait", "0s")
        status, output = await _serve(served, "--processes", "2", *away, "--operation-time", "1s")
        assert status == 2
        assert output.count("turnkeeper serve: no database answers at 127.0.0.1:1: ") == 1
        assert "Traceback" not in output


class TestLoss:
    async def test_a_killed_process_loses_no_turn_and_comes_back(self, served: Served) -> None:
        before = served.pids
        async with served.stubs_of(*before) as (doomed, other):
            sessions = [await harness.create_test_session(stubs, agent="talker") for stubs in (doomed, doomed, other)]
            turn = await harness.send_message_to_session(doomed, sessions[0], "hello", wait=10)
            going = await harness.send_message_to_session(doomed, sessions[1], "a story", wait=0)
            await served.model.exchanges.until(lambda _: len(served.model.exchanges.all()) >= 2)
            os.kill(before[0], signal.SIGKILL)
            taken_over = await harness.wait_for_turn(other, sessions[1], going.turn_id)
            assert taken_over.state == chat_pb2.TURN_STATE_COMPLETED
            assert harness.answer_of(taken_over) == STORY
            kept = await harness.wait_for_turn(other, sessions[0], turn.turn_id, seconds=0)
            assert harness.answer_of(kept) == "You said: hello"
            await until(lambda: len(served.pids) == 2 and served.pids != before, timeout=20)
            (again,) = set(served.pids) - set(before)
        async with asyncio.timeout(20), served.stubs_of(again) as (stubs,):
            assert await _owner(served, stubs) == "pod-1"


class TestStop:
    async def test_sigterm_drains_all_of_them(self, mongo_uri: str) -> None:
        """Streams end with a cursor, and answers within the grace are complete."""
        async with serving(mongo_uri) as served, served.stubs_of(*served.pids) as both:
            sessions = [await harness.create_test_session(stubs, agent="talker") for stubs in both]
            readers = [Reader() for _ in both]
            async with asyncio.TaskGroup() as group:
                for stubs, session, reader in zip(both, sessions, readers, strict=True):
                    await harness.send_message_to_session(stubs, session, "a story", wait=0)
                    group.create_task(_until_drained(stubs, session, reader))
                await until(lambda: all(reader.deltas for reader in readers))
                for pid in served.pids:  # a service manager may signal every process of it
                    os.kill(pid, signal.SIGTERM)
                assert await served.server.terminate() == 0
            async with AsyncMongoClient[dict[str, Any]](mongo_uri) as client:
                turns = await client[served.database].turns.find({"tenant": harness.TENANT}, {"state": 1}).to_list()
        assert [turn["state"] for turn in turns] == ["COMPLETED", "COMPLETED"]

    async def test_ctrl_c_skips_the_delay_of_all_of_them(self, mongo_uri: str) -> None:
        """Ctrl-C reaches the supervisor alone."""
        async with serving(mongo_uri, "--drain-delay", "10m") as served, served.stubs_of(*served.pids):
            served.server.process.send_signal(signal.SIGINT)
            async with asyncio.timeout(20):
                assert await served.server.process.wait() == 0

    async def test_a_second_signal_ends_them_at_once(self, mongo_uri: str) -> None:
        async with (
            serving(mongo_uri, "--drain-delay", "60s") as served,
            harness.connect(served.server.address) as stubs,
        ):
            pids = served.pids
            served.server.process.send_signal(signal.SIGTERM)
            await eventually(lambda: _unhealthy(stubs))
            assert all(map(alive, pids))
            assert await served.server.terminate() == -signal.SIGTERM
            await until(lambda: not any(map(alive, pids)))

    async def test_a_killed_supervisor_leaves_nothing(self, mongo_uri: str) -> None:
        """Not even a process that does not answer."""
        async with serving(mongo_uri) as served:
            pids = served.pids
            os.kill(pids[0], signal.SIGSTOP)
            await served.server.kill()
            await until(lambda: not any(map(alive, pids)))


async def test_they_share_the_embedded_database_and_the_small_model(tmp_path: Path) -> None:
    """One line alone is printed."""
    async with harness.scripted(SCRIPT) as model:
        agents = tmp_path / "agents.toml"
        agents.write_text(AGENT.format(model.base_url))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "turnkeeper", "serve", "--embedded", "--data-dir", str(tmp_path), "--local-model"),
            *("--processes", "2", "--port", "0", "--agents", str(agents), "--drain-delay", "0s"),
            env={**harness.environment(""), "OPENAI_API_KEY": ""},
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(50):
            address = (await process.stdout.readline()).decode().removeprefix("turnkeeper: serving on ").strip()
            async with harness.connect(address) as stubs:
                session = await harness.create_test_session(stubs, agent="talker")
                turn = await harness.send_message_to_session(stubs, session, "hello", wait=10)
            assert harness.answer_of(turn) == "You said: hello"
            started = children(process.pid)
            assert len(started) == 4, "two replicas, a database, a model"
            assert not [child for pid in replicas(process.pid) for child in children(pid)]
            process.terminate()
            rest, _ = await process.communicate()
    assert rest == b""
    assert process.returncode == 0
    assert not any(map(alive, started))


async def _owner(served: Served, stubs: Stubs) -> str:
    """Sends a message to these stubs' process. Returns the replica that owns its turn."""
    session = await harness.create_test_session(stubs, agent="talker")
    await harness.send_message_to_session(stubs, session, "a story", wait=0)

    async def look() -> str | None:
        async with AsyncMongoClient[dict[str, Any]](served.mongo_uri) as client:
            head = await client[served.database].heads.find_one({"tenant": harness.TENANT, "session_id": session})
        return (head or {}).get("owner") or None

    return await eventually(look)


async def _until_drained(stubs: Stubs, session: str, reader: Reader) -> None:
    with refused("SERVER_DRAINING"):
        async for _ in watch(stubs, session, reader):
            pass


async def _unhealthy(stubs: Stubs) -> bool | None:
    health: Any = health_pb2_grpc.HealthStub(stubs.channel)
    answered = await health.Check(health_pb2.HealthCheckRequest())
    return True if answered.status == health_pb2.HealthCheckResponse.NOT_SERVING else None


async def _serve(served: Served, *flags: str) -> tuple[int, str]:
    """Runs another server on the same database. Returns its exit status, and its output on standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "turnkeeper", "serve", "--port", "0", "--database", served.database, *flags),
        env=harness.environment(served.model, TURNKEEPER_MONGODB_URI=served.mongo_uri),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(40):
        _, output = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()
