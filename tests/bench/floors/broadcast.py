"""F3, live: a bare broadcast. A session's recorded responses go to every watcher, at their recorded times.

SendMessage plays the recording of the next turn, and returns the recorded reply. Bytes are sent as they are.
"""

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from tests.bench.floors.serving import serve


class Broadcast(grpc.GenericRpcHandler):
    """Broadcasts through a queue for each watcher."""

    def __init__(self, recording: dict[str, Any]) -> None:
        turns = [[(at, base64.b64decode(response)) for at, response in turn] for turn in recording["turns"]]
        self._turns = cycle(turns)
        self._first = base64.b64decode(recording["first"])
        self._reply = base64.b64decode(recording["reply"])
        self._watchers = set[asyncio.Queue[bytes]]()

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        if call.method.endswith("/WatchEvents"):
            return grpc.unary_stream_rpc_method_handler(self._watch)
        return grpc.unary_unary_rpc_method_handler(self._send) if call.method.endswith("/SendMessage") else None

    async def _watch(self, _request: bytes, _context: aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        queue = asyncio.Queue[bytes]()
        self._watchers.add(queue)
        try:
            yield self._first
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def _send(self, _request: bytes, _context: aio.ServicerContext[Any, Any]) -> bytes:
        clock = asyncio.get_running_loop().time
        began = clock()
        for at, response in next(self._turns):
            await asyncio.sleep(began + at - clock())
            for watcher in self._watchers:
                watcher.put_nowait(response)
        return self._reply


if __name__ == "__main__":
    broadcast = Broadcast(json.loads(Path(sys.argv[2]).read_text()))
    serve(lambda server: server.add_generic_rpc_handlers((broadcast,)))
