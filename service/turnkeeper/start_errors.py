"""Errors that stop the start of a server. Imports next to nothing: the supervisor needs them, and must stay small."""

import errno
from typing import Final


class SettingError(Exception):
    """A setting has a value that it cannot have. The message names where the value stands, and what it can be."""


class NameTaken(Exception):
    """Another process runs under this replica's name."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"a replica named {name} runs on this database already, its heartbeat has just moved: stop that one, or "
            "choose another --replica"
        )


class PortTaken(Exception):
    """The address cannot be listened on."""

    def __init__(self, address: str, error: OSError | None, *, kind: str = "") -> None:
        """`error`: why a plain socket cannot be bound to the address. `kind`: how the names of its settings begin."""
        known, taken = (_UNIX_REASONS, _UNIX_TAKEN) if address.startswith("unix:") else (_REASONS, _TAKEN)
        reason = (known.get(error.errno or 0, "") if error else "") or taken
        super().__init__(f"{address} cannot be listened on: {reason.replace('--', f'--{kind}')}")


_UNIX_TAKEN: Final = "another program listens there, or it is a file. Stop that one, or choose another --host."
_UNIX_REASONS: Final = {
    errno.ENOENT: "its folder does not exist. Make it, or choose another --host.",
    errno.ENOTDIR: "its folder is a file. Choose another --host.",
    errno.EACCES: "this user may not write to its folder. Choose another --host.",
}
_TAKEN: Final = "another program has it. Stop that one, or choose another --port."
_REASONS: Final = {
    errno.EADDRNOTAVAIL: "this machine does not have the address. Choose another --host.",
    errno.EAFNOSUPPORT: "this machine does not have addresses of its kind. Choose another --host.",
    errno.EACCES: "this user may not use the port. Choose a --port from 1024 on.",
}
