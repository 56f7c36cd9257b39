"""Binds a gRPC server to an address, with the reason if that fails: gRPC's own error does not have it."""

import socket
from pathlib import Path

import grpc
from grpc import aio

from turnkeeper.setting_types import UNIX
from turnkeeper.start_errors import PortTaken


def bind(server: aio.Server, address: str, credentials: grpc.ServerCredentials | None = None, *, kind: str = "") -> int:
    """Binds host:port, and returns the port; port 0 takes a free one. Or binds unix:PATH, and returns 1.

    With credentials, callers connect by TLS. `kind` is the beginning of the settings of the address, such as
    `health-`. Raises PortTaken if the address cannot be bound.
    """
    if address.startswith(UNIX) and _is_answered(address):  # gRPC would take it over
        raise PortTaken(address, None, kind=kind)
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise PortTaken(address, _bind_error(address), kind=kind) from error


def _bind_error(address: str) -> OSError | None:
    """Returns why a plain socket cannot be bound to the address."""
    if address.startswith(UNIX):
        return _unix_error(address)
    host, _, port = address.rpartition(":")
    try:
        for family, *_, at in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM):
            with socket.socket(family) as probe:
                probe.bind(at)
    except OSError as error:
        return error
    return None


def _unix_error(address: str) -> OSError | None:
    path = address.removeprefix(UNIX)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(path)
        Path(path).unlink()
    except OSError as error:
        return error
    return None


def _is_answered(address: str) -> bool:
    """Returns True if a program accepts connections at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(address.removeprefix(UNIX))
        except OSError:
            return False
    return True
