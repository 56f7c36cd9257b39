"""Finds free ports, and the programs that hold taken ones."""

import errno
import socket
from pathlib import Path

_LISTENING = "0A"


def taken(port: int) -> bool:
    """Returns True if a program listens on this port of 127.0.0.1, or if this user may not."""
    with socket.socket() as probe:
        # As gRPC does: a port whose last owner was killed can be had at once.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return True
            raise
    return False


def free_port() -> int:
    """Returns a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def holder(port: int) -> str:
    """Returns the program that listens on the port, as "name (pid 7)"; "another program" if it cannot be seen."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(handle.readlink()) in sockets for handle in (process / "fd").iterdir()):
                program, *words = (process / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
                return f"`{' '.join([Path(program).name, *words])[:60]}` (pid {process.name})"
        except OSError:
            continue
    return "another program"


def _inodes(port: int) -> list[str]:
    """Returns the kernel's numbers of the sockets that listen on a port."""
    inodes: list[str] = []
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        rows = [line.split() for line in lines]
        inodes += [row[9] for row in rows if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port]
    return inodes
