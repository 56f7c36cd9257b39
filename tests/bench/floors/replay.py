"""F3: a bare server stream. Every caller of WatchEvents gets the bytes of the recorded responses."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from tests.bench.floors.serving import serve
from tests.bench.jobs.recording import responses_of

METHOD = "/turnkeeper.v1.SessionService/WatchEvents"


class Replay(grpc.GenericRpcHandler):
    """Answers WatchEvents with the recorded responses."""

    def __init__(self, responses: list[bytes]) -> None:
        self._responses = responses

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_stream_rpc_method_handler(self._stream) if call.method == METHOD else None

    async def _stream(self, _request: bytes, _context: aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        for response in self._responses:
            yield response


if __name__ == "__main__":
    replay = Replay(responses_of(Path(sys.argv[2])))
    serve(lambda server: server.add_generic_rpc_handlers((replay,)))
