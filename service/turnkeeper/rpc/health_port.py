"""The health port: a second server with gRPC's health service alone, for probes that bring no certificate."""

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final

from grpc import aio

from turnkeeper.rpc import listening
from turnkeeper.rpc.health import Health

CONNECTIONS: Final = 256
"""Connections to the health port at the same time, at most."""
STREAMS: Final = 16
"""Calls of one connection at the same time, at most: a probe has one."""
SETTINGS: Final = "health-"
"""The beginning of the names of its settings."""

_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.max_allowed_incoming_connections", CONNECTIONS),
    ("grpc.max_concurrent_streams", STREAMS),
    ("grpc.max_receive_message_length", 4 << 10),  # bytes; a request is the name of a service
    ("grpc.keepalive_time_ms", 30_000),  # a peer that is gone holds no place for long
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
    ("grpc.max_connection_idle_ms", 5 * 60_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
)

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def serving(health: Health, host: str, port: int | None, *, share_port: bool) -> AsyncIterator[str]:
    """Serves health on the port until the end of the block, and yields its address; "" and nothing without a port.

    Without TLS and without credentials, whatever the port of the API asks for. `share_port` as in `Server`. Raises
    PortTaken.
    """
    if port is None:
        yield ""
        return
    server = aio.server(options=(*_OPTIONS, ("grpc.so_reuseport", int(share_port))))
    health.add_to(server)
    address = f"{host}:{listening.bind(server, f'{host}:{port}', kind=SETTINGS)}"
    await server.start()
    logger.info("health checks are served on %s", address)
    try:
        yield address
    finally:
        await server.stop(None)
