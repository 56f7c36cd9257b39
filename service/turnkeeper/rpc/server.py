"""Sets up the gRPC server: its options, our services, health, reflection and channelz."""

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from grpc import aio
from grpc_channelz.v1 import channelz, channelz_pb2

from turnkeeper import descriptors
from turnkeeper.database_state import DatabaseState
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.identity.server_certificate import ServerCertificate
from turnkeeper.pb.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    approval_pb2,
    approval_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    operator_pb2,
    operator_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from turnkeeper.rpc import accepting, health, listening, reflection, tls
from turnkeeper.rpc.access import CHANNELZ
from turnkeeper.rpc.interceptor import Boundary
from turnkeeper.settings import Settings

OUR_FILES = tuple(
    module.DESCRIPTOR for module in (session_pb2, chat_pb2, approval_pb2, agent_pb2, audit_pb2, operator_pb2)
)
"""The files that declare our services."""
OUR_METHODS = frozenset(
    method.name for file in OUR_FILES for service in file.services_by_name.values() for method in service.methods
)
SERVICES = tuple(service.full_name for file in OUR_FILES for service in file.services_by_name.values())
FILES = (*OUR_FILES, channelz_pb2.DESCRIPTOR)
"""The files that declare the services, except those of health and reflection."""

DATABASE_RETRY = timedelta(seconds=1)
"""When a caller may try again after a call that found the private database away: its start takes about this long."""

MINUTE = 60_000
"""Milliseconds."""

WINDOW_BYTES = 32 << 10
"""Bytes that a client may send of a request before it is read."""

OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", 4 << 20),  # bytes, as all lengths and sizes here
    ("grpc.max_send_message_length", 4 << 20),
    ("grpc.max_metadata_size", 32 << 10),  # the default refuses at random between 8 and 16 KiB, and meshes add headers
    ("grpc.absolute_max_metadata_size", 48 << 10),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's defaults close idle connections that ping. Clients in Go can be set to 10 s, and a ping may be early.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
    ("grpc.max_connection_age_ms", 30 * MINUTE),
    ("grpc.max_connection_age_grace_ms", 12 * MINUTE),  # longer than any stream
    ("grpc.max_connection_idle_ms", 15 * MINUTE),
    ("grpc.max_concurrent_streams", 1024),
    # By default the core lets each stream of a fast connection send 4 MiB that no code of ours has requested.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # By default the core ends calls by itself, as CANCELLED, while 1,000 to 3,000 wait to be taken.
    ("grpc.server.max_pending_requests", 1_000_000),
    ("grpc.server.max_pending_requests_hard_limit", 2_000_000),
)
"""gRPC's options. Those that a caller meets are in the documents: limits, and health and drain."""


logger = logging.getLogger(__name__)


class Server:
    """Serves our services, and gRPC's own, on one port."""

    def __init__(self, boundary: Boundary, settings: Settings, health_: health.Health, *, share_port: bool) -> None:
        """`boundary` is the interceptor. `health_` has the status of SERVICES.

        `share_port` lets other processes of the same user listen on the port, which then share its calls. Without it a
        second server on the port fails to start. Connections beyond `_connections` are closed at once.
        """
        options = (
            *OPTIONS,
            ("grpc.so_reuseport", int(share_port)),
            ("grpc.max_allowed_incoming_connections", _connections(settings.concurrency)),
        )
        self._boundary = boundary
        self._serving = False
        self.database = DatabaseState.UP
        self._database_answers = True
        self._server = accepting.AcceptingServer(interceptors=(boundary,), options=options)
        self._health = health_
        self._health.add_to(self._server)
        if settings.channelz:
            channelz.add_channelz_servicer(self._server)
        if settings.reflection:
            names = (*SERVICES, health.NAME, *([CHANNELZ] if settings.channelz else []))
            reflection.add_to(self._server, names, files=FILES)

    def add(self, servicer: Any) -> None:
        """Registers the servicer of one of our services."""
        for base, register in _REGISTER.items():
            if isinstance(servicer, base):
                register(servicer, self._server)

    def listen(self, address: str, certificate: ServerCertificate | None) -> int:
        """Binds host:port, and returns the port; port 0 takes a free one. Or binds unix:PATH, and returns 1.

        With a certificate, callers connect by TLS. Raises PortTaken if the address cannot be bound.
        """
        credentials = None if certificate is None else tls.credentials_of(certificate)
        return listening.bind(self._server, address, credentials)

    async def start(self) -> None:
        """Begins to accept calls."""
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """Sets the health of every service: SERVING if the database is up and answers as well."""
        self._serving = serving
        await self._health.set_serving(serving and self.database is DatabaseState.UP and self._database_answers)

    async def set_database_answers(self, answers: bool) -> None:
        """While the database does not answer, health is NOT_SERVING. Calls and streams go on as they can."""
        self._database_answers = answers
        await self.set_serving(self._serving)

    async def set_database(self, state: DatabaseState) -> None:
        """Unless the database is up, health is NOT_SERVING, and each call ends with UNAVAILABLE at once."""
        self.database = state
        self._boundary.refuse = None if state is DatabaseState.UP else _database_away
        await self.set_serving(self._serving)

    async def stop(self, grace: float) -> None:
        """Sends GOAWAY, and cancels the calls that still run after `grace` seconds. A second call may shorten it."""
        await self._server.stop(grace)


def _connections(models: int) -> int:
    """Returns how many connections clients may have beside calls of so many models at the same time."""
    limit = descriptors.limit()
    connections = descriptors.connections(limit, models=models)
    if limit - connections < descriptors.needed(models=models):
        logger.warning(
            "%d file descriptors are few for --concurrency %d: clients have %d connections, and a call of a model may "
            "find none left; raise the limit (ulimit -n) to %d or more",
            limit,
            models,
            connections,
            2 * descriptors.needed(models=models),
        )
    return connections


def _database_away() -> ServiceUnavailable:
    return ServiceUnavailable(retry_after=DATABASE_RETRY)


_REGISTER: dict[type[Any], Callable[[Any, aio.Server], None]] = {
    session_pb2_grpc.SessionServiceServicer: session_pb2_grpc.add_SessionServiceServicer_to_server,
    chat_pb2_grpc.ChatServiceServicer: chat_pb2_grpc.add_ChatServiceServicer_to_server,
    approval_pb2_grpc.ApprovalServiceServicer: approval_pb2_grpc.add_ApprovalServiceServicer_to_server,
    agent_pb2_grpc.AgentServiceServicer: agent_pb2_grpc.add_AgentServiceServicer_to_server,
    audit_pb2_grpc.AuditServiceServicer: audit_pb2_grpc.add_AuditServiceServicer_to_server,
    operator_pb2_grpc.OperatorServiceServicer: operator_pb2_grpc.add_OperatorServiceServicer_to_server,
}
