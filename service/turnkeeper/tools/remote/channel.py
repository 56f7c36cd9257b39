"""The connection to one tool server: it tells a call that never left from one that may have."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from cryptography.x509 import load_pem_x509_certificates
from grpc import aio

from turnkeeper.tools.contract import NotStarted

CONNECT_TIME: Final = 5.0
"""Seconds to open a connection, at most."""
MESSAGE_BYTES: Final = 4 << 20
"""The largest message of a server: a list of tools may be long. A result has a limit of its own."""
_OPTIONS: Final = (
    # Nothing repeats a call, here or by a configuration from DNS: a repeat that was not stored could double its effect.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
)
_DOWN: Final = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteServer:
    """A tool server as the catalogue has it."""

    name: str
    """The prefix of its tools' names, and the audience of the tokens."""
    target: str
    """`host:port`, as gRPC reads it."""
    ca: bytes | None = None
    """The CAs whose certificates the server may have, PEM; None: those of gRPC."""
    plaintext: bool = False
    """Without TLS: tokens, arguments and results can be read on the way."""


def opened(server: RemoteServer) -> aio.Channel:
    """Returns a channel, which connects at its first use."""
    if server.plaintext:
        return aio.insecure_channel(server.target, options=_OPTIONS)
    return aio.secure_channel(server.target, grpc.ssl_channel_credentials(server.ca), options=_OPTIONS)


async def connect(channel: aio.Channel, *, name: str, within: float) -> None:
    """Returns once the channel is connected. Raises NotStarted: the only proof that a call has not left.

    A server that refused the last connection is not waited for: gRPC tries it again by itself, after a pause.
    """
    if channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
        return
    try:
        async with asyncio.timeout(min(within, CONNECT_TIME)):
            while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                if state in _DOWN:
                    break
                await channel.wait_for_state_change(state)
            else:
                return
    except TimeoutError:
        pass
    raise NotStarted(f"The server {name} cannot be reached; the tool did not run.")


def authorities(path: Path) -> bytes:
    """Returns the certificates of the file. Raises OSError, and ValueError if it has none."""
    content = path.read_bytes()
    load_pem_x509_certificates(content)
    return content
