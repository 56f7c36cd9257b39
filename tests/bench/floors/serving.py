"""What the gRPC floors share: our options, uvloop, a free port, and no more."""

import asyncio
from collections.abc import Callable, Coroutine

import uvloop
from grpc import aio

from turnkeeper.rpc.server import OPTIONS


def serve(add: Callable[[aio.Server], None]) -> None:
    """Serve what `add` adds, until the process is ended."""
    main: Coroutine[None, None, None] = _serve(add)
    uvloop.run(main)


async def _serve(add: Callable[[aio.Server], None]) -> None:
    server = aio.server(options=OPTIONS)
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"floor: serving on 127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()
