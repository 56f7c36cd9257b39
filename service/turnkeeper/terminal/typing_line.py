"""Reads a line that a person types, with the keys for editing and the history of lines that a shell has."""

import os
import readline
import select
import signal
import sys
from collections.abc import Iterator

HISTORY = 1_000
"""Lines that the arrow keys bring back."""

_LONGEST = 4096
"""Bytes of a line that a terminal takes."""


def read(prompt: str) -> str:
    """Returns the line. Raises EOFError at Ctrl-D, and KeyboardInterrupt at Ctrl-C.

    Nothing else goes on meanwhile: no call is open where this is used. Called in the main thread.
    """
    readline.set_history_length(HISTORY)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(prompt)
    finally:
        signal.signal(signal.SIGINT, handler)


def typed_before() -> Iterator[str | None]:
    """Yields the whole lines that the terminal holds already; None for a Ctrl-D, which is the last.

    The terminal itself has put them together. `read` takes only what was typed after that: it reads key by key, and
    to it such a Ctrl-D is not the key any more.
    """
    descriptor = sys.stdin.fileno()
    while select.select([descriptor], [], [], 0)[0]:
        data = os.read(descriptor, _LONGEST)
        if not data:
            yield None
            return
        yield data.decode("utf-8", "replace").removesuffix("\n")
