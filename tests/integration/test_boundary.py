"""Whatever a caller's request raises in a method, its call ends with INTERNAL_ERROR, and the server goes on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import aio
from opentelemetry.metrics import NoOpMeterProvider

from tests import harness
from tests.status_details import details_of
from tests.unit.telemetry.calls import Traces
from turnkeeper.pb.v1 import agent_pb2, agent_pb2_grpc, session_pb2, session_pb2_grpc
from turnkeeper.rpc.interceptor import Boundary
from turnkeeper.rpc.server import Server
from turnkeeper.telemetry.metrics import Metrics

SECRET = "canary-90aa"


class Panic(BaseException):
    """As a Rust library raises it: no Exception."""


RAISED = {
    error.__name__: error
    for error in (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, Panic, RecursionError)
}


class Agents(agent_pb2_grpc.AgentServiceServicer):
    """Raises the error that a request names."""

    async def GetAgent(  # noqa: N802 - the RPC's name
        self, request: agent_pb2.GetAgentRequest, context: Any
    ) -> agent_pb2.GetAgentResponse:
        if request.name in RAISED:
            raise RAISED[request.name](SECRET)
        return agent_pb2.GetAgentResponse()


class Sessions(session_pb2_grpc.SessionServiceServicer):
    """Streams one response, then raises the error that a request names."""

    async def WatchEvents(  # type: ignore[override]  # noqa: N802 - as the service's own: a generator of bytes
        self, request: session_pb2.WatchEventsRequest, context: Any
    ) -> AsyncIterator[bytes]:
        yield session_pb2.WatchEventsResponse(through_sequence=1).SerializeToString()
        raise RAISED[request.session_id](SECRET)


@pytest.fixture
async def stubs() -> AsyncIterator[harness.Stubs]:
    boundary = Boundary(spans=Traces().spans, metrics=Metrics(NoOpMeterProvider()), write_timeout=30)
    server = Server(boundary, reflect=False, channels=False, share_port=False)
    server.add(Agents())
    server.add(Sessions())
    port = server.listen("127.0.0.1:0")
    await server.start()
    async with harness.connect(f"127.0.0.1:{port}") as stubs:
        yield stubs
    await server.stop(0)


@pytest.mark.parametrize("name", RAISED)
async def test_b1_whatever_a_request_raises_is_its_calls_error(stubs: harness.Stubs, name: str) -> None:
    with pytest.raises(aio.AioRpcError) as unary:
        await stubs.agents.GetAgent(agent_pb2.GetAgentRequest(name=name), timeout=10)
    stream = stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=name), timeout=10)
    assert (await anext(aiter(stream))).through_sequence == 1
    with pytest.raises(aio.AioRpcError) as streamed:
        await anext(aiter(stream))
    for error in (unary.value, streamed.value):
        assert details_of(error).reason == "INTERNAL_ERROR"
        assert SECRET not in str(error)
    await stubs.agents.GetAgent(agent_pb2.GetAgentRequest(name="another"), timeout=10)
