"""Counts the Python functions that some work calls: the same number on a busy machine as on a resting one."""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
_OURS = (__file__, contextlib.__file__)
"""Files of the functions that count: some versions of Python count these, too."""


@contextlib.contextmanager
def counting_calls() -> Iterator[Counter[str]]:
    """Yields how often each function is called in this thread inside the block, by its qualified name."""
    counts = Counter[str]()

    def count(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call" and frame.f_code.co_filename not in _OURS:
            counts[frame.f_code.co_qualname] += 1

    sys.setprofile(count)
    try:
        yield counts
    finally:
        sys.setprofile(None)


def calls_of(work: Callable[[], T]) -> tuple[T, Counter[str]]:
    """Returns what `work` returns, and how often it called each function, by its qualified name."""
    with counting_calls() as counts:
        result = work()
    return result, counts
