"""An OTLP collector that keeps nothing: for the cost of sending telemetry."""

from typing import Any

import grpc
from grpc import aio

from tests.bench.floors.serving import serve


class Sink(grpc.GenericRpcHandler):
    """Answers every call with an empty response, which OTLP takes for success."""

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._take)

    async def _take(self, _request: bytes, _context: aio.ServicerContext[Any, Any]) -> bytes:
        return b""


if __name__ == "__main__":
    serve(lambda server: server.add_generic_rpc_handlers((Sink(),)))
