"""Makes small calls with credentials, as callers of a server with TLS do."""

import asyncio
import itertools
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from grpc import aio

from tests.bench.runner import CHANNELS, Channels
from turnkeeper.dev_credentials import token
from turnkeeper.pb.v1 import agent_pb2, agent_pb2_grpc


async def list_agents(
    _: Channels, *, address: str, folder: str, certificate: str, tokens: int, count: int, concurrency: int
) -> int:
    """Makes `count` calls of ListAgents, `concurrency` at once, and returns their number.

    `certificate`: the name of the caller's; empty for none. `tokens`: how many of Ada's the calls carry by turns.
    """
    files = Path(folder)
    pair = [(files / f"{certificate}{end}.pem").read_bytes() for end in ("-key", "")] if certificate else [None, None]
    credentials = grpc.ssl_channel_credentials((files / "ca.pem").read_bytes(), *pair)
    signer: Any = load_pem_private_key((files / "signing-key.pem").read_bytes(), password=None)
    bearers = [f"Bearer {token(signer, 'ada', lifetime=timedelta(hours=1, seconds=n))}" for n in range(tokens)]
    carried: list[tuple[tuple[str, str], ...]] = [(("authorization", bearer),) for bearer in bearers] or [()]
    async with AsyncExitStack() as stack:
        stubs = []
        for _number in range(CHANNELS):
            channel = aio.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])
            await stack.enter_async_context(channel)
            await channel.channel_ready()
            stubs.append(agent_pb2_grpc.AgentServiceStub(channel))
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                metadata = carried[number % len(carried)]
                await stubs[number % CHANNELS].ListAgents(agent_pb2.ListAgentsRequest(), metadata=metadata)

        await asyncio.gather(*itertools.starmap(work, [()] * concurrency))
    return count
