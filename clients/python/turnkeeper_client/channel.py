"""The channel to the service: balancing, retries, timeouts and keepalive."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Literal

import grpc
from grpc import aio

Config = Literal["direct", "mesh"]
ChannelOption = tuple[str, Any]

KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
# The first try to connect again, and the longest pause between tries: gRPC's own 120 s outlasts any restart.
RECONNECT_MS = 200
RECONNECT_MAX_MS = 5_000
# A request larger than this is not retried by gRPC; its own 256 KiB is less than one message may have.
RETRY_BUFFER_BYTES = 8 * 1024 * 1024


def service_config(config: Config) -> str:
    """Returns the gRPC service config of that name, as JSON text."""
    return files("turnkeeper_client").joinpath(f"{config}.json").read_text(encoding="utf-8")


def open_channel(
    target: str,
    *,
    config: Config,
    credentials: grpc.ChannelCredentials | None,
    options: Sequence[ChannelOption],
    interceptors: Sequence[aio.ClientInterceptor] = (),
) -> aio.Channel:
    """Returns a channel that connects with its first call. `options` override the package's own."""
    if config == "direct":
        target = with_dns(target)
    chosen: list[ChannelOption] = [
        ("grpc.service_config", service_config(config)),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # A stream's client sends nothing after its request; without this gRPC would stop its pings.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
        ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
        *options,
    ]
    settled = list(dict(chosen).items())
    if credentials is None:
        return aio.insecure_channel(target, options=settled, interceptors=interceptors)
    return aio.secure_channel(target, credentials, options=settled, interceptors=interceptors)


def with_dns(target: str) -> str:
    """Returns `target` as a DNS name that resolves to every replica, unless it names another scheme."""
    if "://" in target or target.startswith(("unix:", "unix-abstract:", "ipv4:", "ipv6:", "dns:", "xds:", "vsock:")):
        return target
    return f"dns:///{target}"
