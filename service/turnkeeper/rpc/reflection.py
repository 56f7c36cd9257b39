"""Serves gRPC's server reflection, versions v1 and v1alpha, from a descriptor pool of our own.

Protobuf's default pool has grpcio-health-checking's file of the health service, which lacks List, and refuses a second
file with the same messages.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import aio
from grpc_reflection.v1alpha import reflection_pb2 as v1alpha
from grpc_reflection.v1alpha._async import ReflectionServicer

from turnkeeper.pb.grpc import POOL
from turnkeeper.pb.grpc.reflection.v1 import reflection_pb2 as v1
from turnkeeper.rpc.context import UNREADABLE, Context

NAMES = tuple(version.DESCRIPTOR.services_by_name["ServerReflection"].full_name for version in (v1, v1alpha))
"""The full names of both versions of the service."""

DETAILS: tuple[FileDescriptor, ...] = (status_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR)
"""The files that declare the details of an error. No service imports them, but clients look them up to show one."""


def add_to(server: aio.Server, services: Iterable[str], *, files: Iterable[FileDescriptor]) -> None:
    """Registers both versions. They list `services` and themselves, and describe `files` and what these import."""
    for file in (cast(FileDescriptor, v1alpha.DESCRIPTOR), *DETAILS, *files):
        _add_to_pool(file)
    servicer: Any = ReflectionServicer((*services, *NAMES), pool=_Symbols(POOL))

    async def answer(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        async for response in servicer.ServerReflectionInfo(_parsed(requests, context), context):
            yield response

    # The messages of v1 have the names and numbers of v1alpha's fields, so one handler serves both.
    handler: Any = grpc.stream_stream_rpc_method_handler(
        answer,
        response_serializer=v1alpha.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in NAMES]
    )


async def _parsed(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
    """Yields the requests. Ends the call if bytes cannot be parsed; gRPC would log that each time."""
    async for data in requests:
        try:
            request = v1alpha.ServerReflectionRequest.FromString(data)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, UNREADABLE)
        yield request


class _Symbols:
    """A descriptor pool that also finds methods, as the protocol asks for: protobuf's own does not."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        """Returns the pool's own attribute."""
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """Returns the file of a symbol, for example `package.Service.Method`. Raises KeyError if there is none."""
        try:
            return cast(FileDescriptor, self._pool.FindFileContainingSymbol(symbol))
        except KeyError:
            service, _, method = symbol.rpartition(".")
            return cast(
                FileDescriptor, self._pool.FindServiceByName(service).methods_by_name[method].containing_service.file
            )


def _add_to_pool(file: FileDescriptor) -> None:
    """Copies a file, and before it the files that it imports, to the pool, unless the pool has it already."""
    pool: Any = POOL
    try:
        pool.FindFileByName(file.name)
    except KeyError:
        for imported in file.dependencies:
            _add_to_pool(imported)
        pool.AddSerializedFile(file.serialized_pb)
