"""Keeps standard output for the product's own lines: whatever tools and libraries print goes to standard error.

Programs read `turnkeeper: serving on …` there. A tool that prints the same must not be taken for the product.
"""

import contextlib
import os
import sys
from typing import TextIO


def replace_missing() -> None:
    """Opens the null device in place of each standard stream that the process was started without.

    A file or a socket would get the number of the missing one, and what is written to standard error.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def announce(address: str, output: TextIO | None) -> None:
    """Writes that the server serves. A reader that has left, or a full disk, does not end the server."""
    with contextlib.suppress(OSError):
        print(f"turnkeeper: serving on {address}", file=output, flush=True)


def own_errors() -> TextIO | None:
    """Returns standard error for the log alone, which goes on if a tool closes file descriptor 2; None without one."""
    try:
        return os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    except OSError:
        return None


def claim() -> TextIO | None:
    """Returns what was standard output, for the caller alone; None if the process was started without one.

    From here on, file descriptor 1 is standard error: for Python's `print`, for C code, and for programs that the
    process starts.
    """
    if sys.stdout is None:
        return None
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.close(nothing)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # the interpreter's own stream
    return own
