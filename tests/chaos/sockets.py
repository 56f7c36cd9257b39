"""Whose a connection is: the kernel's own tables say which process has the other end of it."""

import os
from collections.abc import Mapping
from pathlib import Path


def owner(peer_port: int, *, names: Mapping[int, str]) -> str:
    """The name, from pid to name, of the process that connected from this port of 127.0.0.1; "" for any other."""
    inode = _inode(peer_port)
    if not inode:
        return ""
    for pid, name in list(names.items()):
        if _has(pid, f"socket:[{inode}]"):
            return name
    return ""


def _inode(port: int) -> str:
    wanted = f":{port:04X}"
    try:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return ""
    for line in lines:
        row = line.split()
        if row[1].endswith(wanted):
            return row[9]
    return ""


def _has(pid: int, socket: str) -> bool:
    try:
        handles = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - a name is all that is needed, for each connection
        return any(_target(f"/proc/{pid}/fd/{each}") == socket for each in handles)
    except OSError:
        return False


def _target(link: str) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - as above
    except OSError:
        return ""
