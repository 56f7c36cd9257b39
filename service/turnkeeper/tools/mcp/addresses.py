"""Which addresses of the network a tool server may have.

A name is resolved here, and the connection goes to the very address that was checked: a name that resolves to another
one a moment later leads nowhere else.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from turnkeeper.tools.mcp.link import CannotOpen

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_EMBEDDED: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
"""Networks whose last 32 bits are an IPv4 address, which a gateway may connect to, beside those that Python knows."""
_METADATA: Final = frozenset({ipaddress.IPv6Address("fd00:ec2::254"), ipaddress.IPv4Address("100.100.100.200")})
"""Addresses at which clouds give credentials to what runs there, beyond those of the link."""


async def resolve(host: str, port: int, *, allow_private: bool) -> Sequence[str]:
    """Returns the addresses of a host. Raises CannotOpen if it has none, or one that no server may have.

    `allow_private`: private networks and this machine are allowed; the link's own addresses, which have the metadata of
    clouds, never are.
    """
    try:
        async with asyncio.timeout(RESOLVE_TIME):
            records = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
            )
    except (OSError, UnicodeError):
        raise CannotOpen(f"the name {host} does not resolve") from None
    except TimeoutError:
        raise CannotOpen(f"the name {host} does not resolve within {RESOLVE_TIME:g} s") from None
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in records))
    for address in addresses:
        check(address, host=host, allow_private=allow_private)
    return addresses


RESOLVE_TIME: Final = 5.0
"""Seconds for the name service."""


def check(address: str, *, host: str, allow_private: bool) -> None:
    """Raises CannotOpen if no server may have this address, or if it is private and not allowed."""
    ip = _innermost(ipaddress.ip_address(address.partition("%")[0]))
    if ip.is_link_local or ip.is_unspecified or ip.is_multicast or ip in _METADATA:
        raise CannotOpen(f"{host} is at {address}, where no tool server may be")
    if not (ip.is_global or allow_private):
        raise CannotOpen(f"{host} is at {address}, a private address: allow_private = true of the server allows it")


def _innermost(ip: IPAddress) -> IPAddress:
    """Returns the IPv4 address that an IPv6 address stands for, otherwise the address itself."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
    if inner is None and int(ip) > 1 and any(ip in network for network in _EMBEDDED):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return inner or ip
