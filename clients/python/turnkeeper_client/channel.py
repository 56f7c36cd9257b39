"""The channel to the service: balancing, retries, timeouts and keepalive."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Literal

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


def settled(target: str, config: Config, options: Sequence[ChannelOption]) -> tuple[str, list[ChannelOption]]:
    """Returns the target and the options of a channel. `options` override the package's own."""
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
    return (with_dns(target) if config == "direct" else target), list(dict(chosen).items())


def check_target(target: str) -> None:
    """Raises ValueError for a URL, and for nothing: a target is a host with its port, or a name of gRPC's own kind."""
    scheme, url, rest = target.partition("://")
    if not url and target.strip() == target != "":
        return
    if not target.strip():
        raise ValueError('the target is empty; write the host and the port: Client("127.0.0.1:50051")')
    if scheme.lower() not in ("http", "https", "grpc", "grpcs", "tcp"):
        return
    address = rest.rstrip("/")
    tls = ", credentials=Credentials(ca=…)" if scheme.lower() in ("https", "grpcs") else ""
    raise ValueError(f'write the target without "{scheme}://": Client("{address}"{tls})')


def with_dns(target: str) -> str:
    """Returns `target` as a DNS name that resolves to every replica, unless it names another scheme."""
    if "://" in target or target.startswith(("unix:", "unix-abstract:", "ipv4:", "ipv6:", "dns:", "xds:", "vsock:")):
        return target
    return f"dns:///{target}"
