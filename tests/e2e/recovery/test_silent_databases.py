"""A database that does not answer ends readiness: neither streams, nor liveness, nor a server that still starts."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests import harness
from tests.e2e.support.stream_reader import Reader, watch
from tests.integration.test_database_addresses import relay
from tests.processes import until
from turnkeeper import app
from turnkeeper.child_processes import free_port
from turnkeeper.rpc.health import LIVENESS
from turnkeeper.rpc.server import SERVICES
from turnkeeper.store.embedded import EmbeddedMongo

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = '[[reply]]\ntext = "You said: {user}"'
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNREADY_AFTER = 1.2
"""Seconds."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mongo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedMongo]:
    """Starts a database for the tests that freeze it."""
    mongo = EmbeddedMongo(tmp_path_factory.mktemp("mongo"))
    async with mongo:
        yield mongo


@asynccontextmanager
async def health_of(address: str) -> AsyncIterator[Any]:
    async with aio.insecure_channel(address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def statuses(health: Any) -> dict[str, int]:
    names = ("", *SERVICES, LIVENESS)
    return {name: (await health.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names}


async def test_a_frozen_database_ends_readiness_and_nothing_else(mongo: EmbeddedMongo) -> None:
    times: dict[str, Any] = {
        "unready_after": timedelta(seconds=UNREADY_AFTER),
        "operation_time": timedelta(seconds=1),
        "heartbeat": timedelta(milliseconds=300),
        "lease": timedelta(seconds=30),
    }
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo.uri, "frozen", model, health_port=0, **times) as running,
        harness.connect(running.address) as stubs,
        health_of(running.health_address) as health,
    ):
        session, reader = await harness.create_test_session(stubs, agent="assistant"), Reader()
        following = asyncio.create_task(_follow(stubs, session, reader))
        await until(lambda: bool(reader.caught_up))
        statuses_seen = health.Watch(health_pb2.HealthCheckRequest())
        assert (await statuses_seen.read()).status == SERVING
        assert mongo.pid
        os.kill(mongo.pid, signal.SIGSTOP)
        frozen_at = time.monotonic()
        try:
            async with asyncio.timeout(20):
                assert (await statuses_seen.read()).status == NOT_SERVING
            assert time.monotonic() - frozen_at > 0.8 * UNREADY_AFTER
            assert await statuses(health) == {**dict.fromkeys(("", *SERVICES), NOT_SERVING), LIVENESS: SERVING}
            kept = reader.heartbeats
            await until(lambda: reader.heartbeats > kept + 1)
        finally:
            os.kill(mongo.pid, signal.SIGCONT)
        async with asyncio.timeout(20):
            assert (await statuses_seen.read()).status == SERVING
        assert set((await statuses(health)).values()) == {SERVING}
        assert not following.done()
        turn = await harness.send_message_to_session(stubs, session, "are you there?", wait=20)
        await until(lambda: "turn_completed" in reader.kinds)
        following.cancel()
    assert harness.answer_of(turn) == "You said: are you there?"


async def _follow(stubs: harness.Stubs, session: str, reader: Reader) -> None:
    async for _ in watch(stubs, session, reader):
        pass


async def test_a_server_waits_for_its_database_and_is_alive_meanwhile(
    mongo: EmbeddedMongo, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "turnkeeper")

    def logged(words: str) -> list[str]:
        return [record.getMessage() for record in caplog.records if words in record.getMessage()]

    port, (host, options) = free_port(), mongo.uri.removeprefix("mongodb://").split("/")
    started: asyncio.Future[app.Running] = asyncio.get_running_loop().create_future()
    ending = asyncio.Event()

    async def serve(uri: str) -> None:
        async with (
            harness.scripted(SCRIPT) as model,
            harness.serving(
                *(uri, "late", model),
                health_port=0,
                replica="late",
                identity="none",
                operation_time=timedelta(seconds=1),
            ) as running,
        ):
            started.set_result(running)
            await ending.wait()

    async with asyncio.timeout(40), asyncio.TaskGroup() as group:
        group.create_task(serve(f"mongodb://127.0.0.1:{port}/{options}"))
        await until(lambda: bool(logged("the start waits for the database")))
        (address,) = (line.rpartition(" ")[2] for line in logged("health checks are served on"))
        async with health_of(address) as health:
            assert await statuses(health) == {**dict.fromkeys(("", *SERVICES), NOT_SERVING), LIVENESS: SERVING}
            await asyncio.sleep(1.2)  # longer than an operation
            assert not started.done()
            async with relay(port, host):
                running = await started
                assert set((await statuses(health)).values()) == {SERVING}
                ending.set()
    (line,) = logged(" serves on ")
    assert line.endswith(
        f"serves on {running.address}: identity none, database late on 127.0.0.1:{port}, replica late, "
        "agents assistant, clerk"
    )
