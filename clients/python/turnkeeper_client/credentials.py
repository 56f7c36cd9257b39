"""What a client calls with: TLS, a token that is renewed, and the person on whose behalf it calls."""

import base64
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import grpc

# Returns a token. It may return it at once, or be a coroutine function; not that for the client without asyncio.
TokenSource = Callable[[], str | Awaitable[str]]
Pem = bytes | Path

ON_BEHALF_OF = "turnkeeper-on-behalf-of"
# Seconds before its end from which on a token is no longer used, if it is a JWT that tells its end.
EARLY = 30.0


def end_of(token: str) -> float:
    """Returns the `exp` of a JWT, in seconds since the epoch; infinity if it is another kind of token.

    A token that is about to end as it comes is used as long as the service takes it.
    """
    try:
        payload = token.split(".")[1]
        end = float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
    except (ValueError, LookupError, TypeError):
        return float("inf")
    return end if end > time.time() + EARLY else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client calls with.

    `ca`, `certificate` and `key`: PEM, as bytes or as a path that is read once. With a CA or a certificate the
    connection has TLS; without a CA the system's count. `token`: called for a token, again before that ends, and once
    when the service has refused it. `on_behalf_of`: the person for whom a delegate calls.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    token: TokenSource | None = None
    on_behalf_of: str = ""

    def tls(self) -> grpc.ChannelCredentials | None:
        """Returns the credentials of a channel, or None for plain text."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or none")
        if self.ca is None and self.certificate is None:
            return None
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))


def is_local(target: str) -> bool:
    """Returns True if what is sent to the target stays on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    addresses = target.rpartition("/")[2].removeprefix("ipv4:").removeprefix("ipv6:")
    return all(map(_is_loopback, addresses.split(",")))


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _read(pem: Pem | None) -> bytes | None:
    return pem.read_bytes() if isinstance(pem, Path) else pem
