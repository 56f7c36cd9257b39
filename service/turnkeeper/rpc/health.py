"""Serves gRPC's health service: Check and Watch by grpcio-health-checking, and List, which that package lacks."""

import asyncio
from collections.abc import Sequence
from typing import Final

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2 as package_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from turnkeeper.pb.grpc.health.v1 import health_pb2

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LIVENESS: Final = "liveness"
"""A service name of health that is SERVING until the process ends, so that a draining replica is not restarted."""


class Health:
    """The status of each service name. Check, Watch and List answer from the same statuses, on each of its servers."""

    def __init__(self, services: Sequence[str]) -> None:
        """`services`: the names beside the empty one and LIVENESS. Call `set_serving` before a server starts."""
        self._names = ("", *services)
        self._serving = False
        self._lock = asyncio.Lock()
        self._servicer = HealthServicer()
        self._statuses: dict[str, health_pb2.HealthCheckResponse.ServingStatus.ValueType] = {}

    def add_to(self, server: aio.Server) -> None:
        """Registers the health service on a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        listing = grpc.unary_unary_rpc_method_handler(
            self._list,
            request_deserializer=health_pb2.HealthListRequest.FromString,
            response_serializer=health_pb2.HealthListResponse.SerializeToString,
        )
        # gRPC tries one handler after the other: this one serves the method that the package's does not have.
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, {"List": listing}),))

    async def set_serving(self, serving: bool) -> None:
        """Sets the status of all names but LIVENESS, which is SERVING. The last of several calls at a time counts."""
        self._serving = serving
        async with self._lock:
            for name in self._names:
                await self._set(name, serving=self._serving)
            await self._set(LIVENESS, serving=True)

    async def _set(self, name: str, *, serving: bool) -> None:
        """Sets the status of a service name to SERVING or NOT_SERVING, and notifies its watchers."""
        self._statuses[name] = SERVING if serving else NOT_SERVING
        await self._servicer.set(
            name, package_pb2.HealthCheckResponse.SERVING if serving else package_pb2.HealthCheckResponse.NOT_SERVING
        )

    async def _list(
        self, request: health_pb2.HealthListRequest, context: aio.ServicerContext[object, object]
    ) -> health_pb2.HealthListResponse:
        """Returns the status of every service name that was set, in the order of the names."""
        statuses = {
            name: health_pb2.HealthCheckResponse(status=status) for name, status in sorted(self._statuses.items())
        }
        return health_pb2.HealthListResponse(statuses=statuses)
