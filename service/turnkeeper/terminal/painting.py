"""The part of the screen that may still change: lines that are written again in place until they are finished."""

import time
from collections.abc import Sequence
from typing import Final

from turnkeeper.terminal.console import Output
from turnkeeper.terminal.markdown import Line, text_lines

ANEW: Final = "(the answer begins anew)"
PART: Final = 0.2
"""Part of the time that painting takes at most; a long text is painted less often."""


class Painting:
    """The last lines on the screen. The cursor is at the beginning of the line below them."""

    def __init__(self, output: Output) -> None:
        self.console: Final = output.console
        self._output = output
        self._lines: list[Line] = []
        self._size = (0, 0)
        self._next = 0.0

    @property
    def due_in(self) -> float:
        """Seconds until it is time to paint again: so long, painting takes a part of the time alone."""
        return max(0.0, self._next - time.monotonic())

    def paint(self, lines: Sequence[Line], *, finished: bool = False) -> None:
        """Shows these lines in place of the former ones. `finished`: they stay, and nothing replaces them."""
        began = time.monotonic()
        same = _same(self._lines, lines)
        up = len(self._lines) - same
        size = (self.console.width, self.console.height)
        is_reachable = up < size[1] and (not self._lines or size == self._size)
        if is_reachable or finished or not lines:
            if is_reachable:
                self._output.rewrite(up, lines[same:])
            else:  # they have left the screen, or the terminal has folded them anew
                self._output.rewrite(0, [*text_lines(ANEW, self.console), *lines])
            self._lines, self._size = list(lines), size
        if finished:
            self._lines = []
        self._next = time.monotonic() + (time.monotonic() - began) / PART


def _same(lines: Sequence[Line], others: Sequence[Line]) -> int:
    """Returns how many lines at the beginning are the same."""
    count = 0
    for line, other in zip(lines, others, strict=False):
        if line != other:
            break
        count += 1
    return count
