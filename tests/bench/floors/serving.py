"""Serves a gRPC floor: the service's options, uvloop, and a free port or one that several processes share."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Final

import uvloop
from grpc import aio

from turnkeeper.rpc.server import OPTIONS

PORT: Final = "BENCH_SHARED_PORT"


def serve(add: Callable[[aio.Server], None]) -> None:
    """Serves the servicer that `add` adds, until the process ends."""
    main: Coroutine[None, None, None] = _serve(add)
    uvloop.run(main)


async def _serve(add: Callable[[aio.Server], None]) -> None:
    port = int(os.environ.get(PORT, "0"))
    server = aio.server(options=(*OPTIONS, ("grpc.so_reuseport", int(port > 0))))
    add(server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"floor: serving on 127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()
