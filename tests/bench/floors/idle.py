"""F6: an idle server stream. Its only response is that it has caught up."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from tests.bench.floors.serving import serve
from turnkeeper.pb.v1 import session_pb2, session_pb2_grpc


class Silent(session_pb2_grpc.SessionServiceServicer):
    """Serves WatchEvents of a session in which nothing happens."""

    async def WatchEvents(  # noqa: N802 - the RPC's name
        self, request: session_pb2.WatchEventsRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[session_pb2.WatchEventsResponse]:
        yield session_pb2.WatchEventsResponse(caught_up=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    serve(lambda server: session_pb2_grpc.add_SessionServiceServicer_to_server(Silent(), server))
