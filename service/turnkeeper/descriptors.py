"""The process's file descriptors: how many connections clients may have, and whether any is left."""

import errno
import os
import resource
import socket
from contextlib import suppress
from typing import Final

DATABASE: Final = 121
"""For the database: a pool of 100, the change stream, the renewals, and what watches a replica set of three."""
OTHERS: Final = 64
"""For files, the log, telemetry, the event loop, tools."""
CLIENTS_SHARE: Final = 8
"""Clients have at least this part of the descriptors, also if the rest is fewer than the others need at most."""
MOST: Final = 1_000_000
_NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE})


def limit() -> int:
    """Returns how many descriptors the process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raises the limit as far as the process may. Many systems set it to 1,024 only for programs that call `select`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has a lower limit than the one that it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def needed(*, models: int) -> int:
    """Returns how many descriptors all but clients need at most, with so many calls of models at the same time."""
    return DATABASE + OTHERS + models


def connections(limit: int, *, models: int) -> int:
    """Returns how many connections clients may have, if there are `limit` descriptors."""
    return max(1, limit // CLIENTS_SHARE, min(limit - needed(models=models), MOST))


def is_lack(error: BaseException) -> bool:
    """Returns True if the error comes from a lack of descriptors here, not from a peer."""
    if isinstance(error, socket.gaierror):  # the resolver reports any cause as its own
        return _none_left()
    return isinstance(error, OSError) and error.errno in _NONE_LEFT


def _none_left() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in _NONE_LEFT
    return False
