"""The load of the bench comes again when a refusal asks it to, and at no other error."""

import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc import aio

from tests.bench.jobs.patient import responses_of
from turnkeeper.errors import Overloaded
from turnkeeper.rpc.status import DETAILS_KEY, details_bytes

METHOD = "/any.Service/Method"
AFTER = timedelta(milliseconds=50)


async def answers(*refusals: grpc.StatusCode) -> tuple[list[bytes], list[float]]:
    """Calls a server that refuses so often before it answers. Returns the responses, and when each call came."""
    left, calls = list(refusals), list[float]()

    async def serve(_request: bytes, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        calls.append(time.monotonic())
        if left:
            details = details_bytes(Overloaded(metadata={"limit": "turn_rate"}, retry_after=AFTER).to_status())
            await context.abort(left.pop(0), "", ((DETAILS_KEY, details),))
        yield b"one"
        yield b"two"

    server = aio.server()
    handler: Any = grpc.unary_stream_rpc_method_handler(serve)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("any.Service", {"Method": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_stream(METHOD)
            return [response for _, response in await responses_of(call, b"", clock=time.monotonic)], calls
    finally:
        await server.stop(None)


async def test_a_refused_call_comes_again_after_the_delay() -> None:
    responses, calls = await answers(*[grpc.StatusCode.RESOURCE_EXHAUSTED] * 2)
    assert responses == [b"one", b"two"]
    assert len(calls) == 3
    assert calls[2] - calls[0] >= 2 * AFTER.total_seconds()


async def test_another_error_is_raised_at_once() -> None:
    with pytest.raises(aio.AioRpcError) as error:
        await answers(grpc.StatusCode.UNAVAILABLE)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
