"""A list of peers as a setting has it: a proxy on a Unix socket, of a network, or with a SPIFFE id."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import unquote

UNIX: Final = "unix"
SPIFFE: Final = "spiffe://"
EXPECTED: Final = f"{UNIX}, a network such as 10.0.0.0/8, or an id such as {SPIFFE}example.org/gateway"

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class PeerList:
    """The peers of a list."""

    unix: bool = False
    """True if all peers that connect by a Unix socket are listed."""
    networks: Sequence[_Network] = ()
    ids: frozenset[str] = frozenset()
    """SPIFFE ids of certificates."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the peers of a list with commas. Raises ValueError for an entry that is not EXPECTED."""
        entries = [entry.strip() for entry in text.split(",") if entry.strip()]
        ids = frozenset(entry for entry in entries if entry.startswith(SPIFFE))
        networks = [ipaddress.ip_network(entry) for entry in entries if entry != UNIX and entry not in ids]
        return cls(UNIX in entries, tuple(networks), ids)

    def has_address(self, peer: str) -> bool:
        """Returns True if a peer of this address is listed. `peer` is what gRPC's `peer()` returns."""
        kind, _, address = peer.partition(":")
        if kind == UNIX:
            return self.unix
        ip = _ip(address)
        return ip is not None and any(ip in network for network in self.networks)


def _ip(address: str) -> _Address | None:
    """Returns the address of `host:port`, or None. One of IPv4 that came by IPv6 is one of IPv4."""
    host = unquote(address).rpartition(":")[0].strip("[]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip
