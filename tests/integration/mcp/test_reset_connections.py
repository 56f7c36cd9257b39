"""A server that resets connections as soon as they are open: a request on one was not sent, and ends no other."""

import asyncio
import time
from collections import Counter

import httpx2
import uvloop

from tests.chaos.proxy import Wire
from tests.mcp_servers.sources import at
from turnkeeper.tools.mcp.http import PinnedTransport

AT_ONCE = 10
ROUNDS = 5
NOT_SENT = "no connection: it was reset as soon as it was open"
NOT_OPEN = "no connection: All connection attempts failed"


def test_a_request_whose_connection_is_reset_at_once_has_an_end_like_any_other() -> None:
    with Wire() as wire:
        url = f"http://{wire.link('nowhere').address}/mcp"
        ends = uvloop.run(_requested(url))
    assert sum(ends.values()) == AT_ONCE * ROUNDS
    assert ends[NOT_SENT] > 0, ends
    others = [end for end in ends if end not in (NOT_SENT, NOT_OPEN) and not end.startswith("the connection broke (")]
    assert others == []


async def _requested(url: str) -> "Counter[str]":
    """Returns how requests end while the loop is so busy that it sees a connection's end together with its opening."""
    busy = asyncio.create_task(_computing())
    ends = Counter[str]()
    try:
        for _ in range(ROUNDS):
            transport = PinnedTransport(at(url))
            requests = (httpx2.Request("POST", url, content=b"{}") for _ in range(AT_ONCE))
            responses = await asyncio.gather(*(transport.handle_async_request(request) for request in requests))
            for response in responses:
                await response.aread()
                ends[response.json()["error"]["message"]] += 1
            await transport.aclose()
    finally:
        busy.cancel()
    return ends


async def _computing() -> None:
    while True:
        time.sleep(0.002)  # noqa: ASYNC251 - it blocks the loop, as a computing tool would
        await asyncio.sleep(0)
