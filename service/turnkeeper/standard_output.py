"""Keeps standard output for the product's own lines: whatever tools and libraries print goes to standard error.

Programs read `turnkeeper: serving on …` there. A tool that prints the same must not be taken for the product.
"""

import os
import sys
from typing import TextIO


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
