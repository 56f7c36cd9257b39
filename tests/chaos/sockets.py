"""Finds the owner of a connection: the kernel has the socket at its other end, and the process of that socket.

It asks by netlink, for one socket at a time: /proc/net/tcp has thousands of lines after a minute of faults.
"""

import os
import socket
import struct
from collections.abc import Mapping
from typing import Final

_SOCK_DIAG_BY_FAMILY: Final = 20
_NETLINK_SOCK_DIAG: Final = 4
_REQUEST: Final = 1
_ANY_STATE: Final = 0xFFFFFFFF
_NO_COOKIE: Final = b"\xff" * 8
_LOOPBACK: Final = socket.inet_aton("127.0.0.1")
_HEADER: Final = struct.Struct("=IHHII")
_QUERY: Final = struct.Struct("=BBBxI")
_INODE_AT: Final = _HEADER.size + 4 + 48 + 16
"""In the answer: after the header, four bytes, the socket's id, and four numbers."""


def owner(peer_port: int, our_port: int, *, names: Mapping[int, str]) -> str:
    """Returns the name of the process that connected from this port of 127.0.0.1; "" if `names` has it not."""
    inode = _inode(peer_port, our_port)
    if not inode:
        return ""
    for pid, name in list(names.items()):
        if _has(pid, f"socket:[{inode}]"):
            return name
    return ""


def _inode(peer_port: int, our_port: int) -> int:
    """Returns the inode of the other end's socket; 0 if it is gone."""
    ports = struct.pack("!HH", peer_port, our_port)
    addresses = _LOOPBACK + bytes(12) + _LOOPBACK + bytes(12)
    query = _QUERY.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _ANY_STATE) + ports + addresses + bytes(4) + _NO_COOKIE
    header = _HEADER.pack(_HEADER.size + len(query), _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1)
        kernel.sendto(header + query, (0, 0))
        answer = kernel.recv(4096)
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return 0
    inode: int = struct.unpack_from("=I", answer, _INODE_AT)[0]
    return inode


def _has(pid: int, target: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        handles = os.listdir(folder)  # noqa: PTH208 - names are all that is needed, at each connection
    except OSError:
        return False
    # A new connection is most likely the newest handle.
    return any(_target(f"{folder}/{handle}") == target for handle in reversed(handles))


def _target(link: str) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - as above
    except OSError:
        return ""
