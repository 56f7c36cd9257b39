"""Counts the Python functions that some work calls: the same number on a busy machine as on a resting one."""

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


def calls_of(work: Callable[[], T]) -> tuple[T, Counter[str]]:
    """Returns what `work` returns, and how often it called each function, by its qualified name."""
    counts = Counter[str]()

    def count(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call":
            counts[frame.f_code.co_qualname] += 1

    sys.setprofile(count)
    try:
        result = work()
    finally:
        sys.setprofile(None)
    return result, counts
