"""Spans and metrics of calls that get no response, over real sockets: the caller left, or its deadline passed."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc import aio
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from tests.builders import NOON, new_id
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from tests.processes import until
from tests.unit.telemetry.calls import Meters, Traces
from turnkeeper.admission.backlog import Backlog
from turnkeeper.admission.gate import Gate
from turnkeeper.admission.load import Load
from turnkeeper.audit.refusals import RefusalSamples
from turnkeeper.identity.credential import Anyone
from turnkeeper.identity.principals import Principals
from turnkeeper.limits.limiter import Limiter
from turnkeeper.rpc.access import AccessRules
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.rpc.identity import CallerCheck
from turnkeeper.rpc.interceptor import Boundary
from turnkeeper.rpc.limits import LimitCheck
from turnkeeper.rpc.refusals import CertainRefusals
from turnkeeper.rpc.refused_calls import RefusedCalls

SERVICE = "test.v1.Waits"
Call = Callable[[aio.Channel, float | None], Awaitable[object]]


@dataclass
class Served:
    """A service whose methods never respond, behind the interceptor."""

    traces: Traces = field(default_factory=Traces)
    meters: Meters = field(default_factory=Meters)

    async def unary(self, request: bytes, context: object) -> bytes:
        await asyncio.Event().wait()
        return request

    async def stream(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        yield request
        await asyncio.Event().wait()

    async def left(self, request: bytes, context: object) -> bytes:
        raise aio.InternalError("the call is closed")

    def linearizable(self) -> AbstractAsyncContextManager[None]:
        """It has no database: each refusal is certain."""
        return contextlib.nullcontext()

    async def ended(self) -> ReadableSpan:
        """Waits until the call's span has ended, and returns it."""
        await until(lambda: bool(self.traces.exporter.get_finished_spans()))
        (span,) = self.traces.exporter.get_finished_spans()
        return span


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Served, aio.Channel]]:
    served = Served()
    store = MemoryStore(
        MemoryDatabase(now=lambda: NOON), codec=WireCodec(), enter=lambda _: asyncio.sleep(0), random=random.Random()
    )
    samples = RefusalSamples(store, now=lambda: NOON, new_id=new_id)
    server = aio.server(
        interceptors=[
            Boundary(
                callers=CallerCheck(Anyone(), Principals(), recheck=60),
                access=AccessRules(()),
                refused_calls=RefusedCalls(samples),
                spans=served.traces.spans,
                metrics=served.meters.metrics,
                gate=Gate(Load(), timedelta(seconds=30), jitter=random.random, recorder=served.meters.metrics),
                certain_refusals=CertainRefusals(served),
                limits=LimitCheck(Limiter(lambda: None, turns=Backlog(), recorder=served.meters.metrics)),
                write_timeout=5,
            )
        ]
    )
    handlers: dict[str, Any] = {
        "Unary": grpc.unary_unary_rpc_method_handler(served.unary, request_deserializer=bytes),
        "Left": grpc.unary_unary_rpc_method_handler(served.left, request_deserializer=bytes),
        "Stream": grpc.unary_stream_rpc_method_handler(served.stream, request_deserializer=bytes),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield served, channel
    await server.stop(0)


async def unary(channel: aio.Channel, timeout: float | None) -> object:
    method: Any = channel.unary_unary(f"/{SERVICE}/Unary")
    return await method(b"", timeout=timeout)


async def stream(channel: aio.Channel, timeout: float | None) -> object:
    method: Any = channel.unary_stream(f"/{SERVICE}/Stream")
    return [response async for response in method(b"", timeout=timeout)]


@pytest.mark.parametrize("call", [unary, stream])
async def test_a_deadline_that_passed_is_named_and_a_fault(call: Call) -> None:
    """It is what the caller sees. Counted as a cancellation, a server that answers too late would look idle."""
    async with serving() as (served, channel):
        with pytest.raises(aio.AioRpcError) as raised:
            await call(channel, 0.3)
        span = await served.ended()
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (span.attributes or {})["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert (span.attributes or {})["error.type"] == "DEADLINE_EXCEEDED"
    assert span.status.status_code is StatusCode.ERROR
    (labels,) = served.meters.points("rpc.server.call.duration")
    assert dict(labels)["rpc.response.status_code"] == dict(labels)["error.type"] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("call", [unary, stream])
async def test_a_caller_that_left_is_a_cancellation_and_no_fault(call: Call, timeout: float | None) -> None:
    async with serving() as (served, channel):
        leaving = asyncio.ensure_future(call(channel, timeout))
        await until(lambda: served.meters.points("turnkeeper.connections.active") == {(): 1})
        leaving.cancel()
        span = await served.ended()
    assert (span.attributes or {})["rpc.response.status_code"] == "CANCELLED"
    assert span.status.status_code is StatusCode.UNSET
    (labels,) = served.meters.points("rpc.server.call.duration")
    assert dict(labels)["rpc.response.status_code"] == "CANCELLED"
    assert "error.type" not in dict(labels)


async def test_a_call_that_is_closed_before_its_response_is_a_cancellation_too() -> None:
    async with serving() as (served, channel):
        method: Any = channel.unary_unary(f"/{SERVICE}/Left")
        with contextlib.suppress(aio.AioRpcError):
            await method(b"", timeout=5)
        span = await served.ended()
    assert (span.attributes or {})["rpc.response.status_code"] == "CANCELLED"
