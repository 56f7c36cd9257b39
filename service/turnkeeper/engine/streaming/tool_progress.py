"""How far the tools of one session are, for its watchers: the newest line of each call that runs. Never history."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_numbers: Final = itertools.count(1)


@dataclass(slots=True, kw_only=True, eq=False)
class ProgressLine:
    """A line of one call."""

    turn_id: str
    attempt: int
    tool_call_id: str
    message: str
    after: int = 0
    """The number of the log's last event when another replica published the line."""
    is_local: bool = True
    """The call runs on this replica."""
    number: int = 0
    """Higher than that of each line before it in this process."""
    wire: bytes = b""
    """Its event, encoded by the first watcher that sends it."""


class ToolProgress:
    """The lines of one session's calls."""

    __slots__ = ("_lines", "newest")

    def __init__(self) -> None:
        self._lines: dict[str, ProgressLine] = {}
        """By call."""
        self.newest = 0
        """The number of the newest line."""

    def put(self, line: ProgressLine) -> None:
        """Takes a line in place of the call's earlier one. Forgets what other replicas wrote before another event."""
        line.number = self.newest = next(_numbers)
        if not line.is_local:
            self._lines = {
                call: kept for call, kept in self._lines.items() if kept.is_local or kept.after == line.after
            }
        self._lines[line.tool_call_id] = line

    def end(self, tool_call_id: str) -> None:
        """Forgets a call that has ended."""
        self._lines.pop(tool_call_id, None)

    def since(self, number: int, *, last_seq: int) -> Iterator[ProgressLine]:
        """Yields the lines after this number, in order, for a watcher that has all events up to the log's end.

        A line of another replica counts until the next event, which may be its call's end.
        """
        for line in sorted(self._lines.values(), key=lambda line: line.number):
            if line.number > number and (line.is_local or line.after == last_seq):
                yield line

    def of_this_replica(self, *, since: int) -> Iterator[ProgressLine]:
        """Yields the lines after this number of the calls that run here."""
        return (line for line in self._lines.values() if line.is_local and line.number > since)
