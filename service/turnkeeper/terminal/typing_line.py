"""Reads a line that a person types, with the keys for editing and the history of lines that a shell has."""

import readline
import signal

HISTORY = 1_000
"""Lines that the arrow keys bring back."""


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
