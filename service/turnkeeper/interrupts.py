"""Ctrl-C while a program starts: it ends at once and quietly, with status 130.

A program calls `end_at_once` before it imports its parts. This module imports next to nothing.
"""

import os
import signal

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C ended; a shell gives the same one to programs that the signal killed."""


def end_at_once() -> None:
    """Makes Ctrl-C and SIGTERM end the process, as long as it has nothing to close. Called in the main thread."""
    signal.signal(signal.SIGINT, _end)
    by_default(signal.SIGTERM)


def raise_again() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt again if it ends the process. Called before anything must be closed."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def by_default(number: int) -> None:
    """Gives a signal its default: it ends the process at once.

    The kernel applies no default to process 1, which a server is in a container: that one exits by itself.
    """
    signal.signal(number, _exit if os.getpid() == 1 else signal.SIG_DFL)


def _end(*_: object) -> None:
    os._exit(INTERRUPTED)


def _exit(number: int, _frame: object) -> None:
    os._exit(128 + number)
