"""`python -m tests.bench.runner SOCKET` runs jobs in a process of its own, so that their CPU is measured apart.

A request is a line of JSON: {"job": "module:function", "arguments": {…}}. Its answer is one, too: {"result": …} or
{"error": "…"}.
"""

import asyncio
import importlib
import sys
import traceback
from contextlib import AsyncExitStack
from typing import Any

import orjson
import uvloop
from grpc import aio

from tests.bench.figures import Invalid
from turnkeeper.rpc.server import OPTIONS

LINE_LIMIT = 256 * 1024 * 1024
READY = "runner: ready"
CHANNELS = 8


class Channels:
    """Connections that stay open between jobs: the same number, with the same options, to every server."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._open: dict[str, list[aio.Channel]] = {}

    async def to(self, address: str) -> list[aio.Channel]:
        """Returns the connections to host:port, all of them connected."""
        if address not in self._open:
            self._open[address] = [await self._channel(address) for _ in range(CHANNELS)]
        return self._open[address]

    async def _channel(self, address: str) -> aio.Channel:
        sizes = [(name, size) for name, size in OPTIONS if name.endswith("message_length")]
        channel = aio.insecure_channel(address, options=[*sizes, ("grpc.use_local_subchannel_pool", 1)])
        await self._stack.enter_async_context(channel)
        await channel.channel_ready()
        return channel


def address_of(name: str) -> str:
    """Returns the name of a socket without a file: a file's path is limited to 107 characters."""
    return f"\0turnkeeper-bench-{name}"


async def main(name: str) -> None:
    async with AsyncExitStack() as stack:
        channels = Channels(stack)
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(orjson.dumps(await _answer(channels, orjson.loads(line))) + b"\n")
                await writer.drain()
            writer.close()
            ended.set()

        async with await asyncio.start_unix_server(serve, address_of(name), limit=LINE_LIMIT):
            print(READY, flush=True)
            await ended.wait()


async def _answer(channels: Channels, request: dict[str, Any]) -> dict[str, Any]:
    module, _, name = request["job"].partition(":")
    try:
        job = getattr(importlib.import_module(module), name)
        return {"result": await job(channels, **request["arguments"])}
    except Invalid as invalid:
        return {"error": str(invalid)}
    except Exception:  # noqa: BLE001 - the harness reports it
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
