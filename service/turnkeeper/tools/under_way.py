"""Counts the calls that sources run now: one that the catalogue no longer has is stopped after its last call."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from turnkeeper.tools.contract import ToolSource


class CallsUnderWay:
    """The calls of all sources."""

    def __init__(self) -> None:
        self._counts: Counter[ToolSource] = Counter()
        self._waiting: dict[ToolSource, asyncio.Event] = {}

    @contextlib.contextmanager
    def at(self, source: ToolSource) -> Iterator[None]:
        """Counts a call of the source for the length of a `with` block."""
        self._counts[source] += 1
        try:
            yield
        finally:
            self._counts[source] -= 1
            if not self._counts[source]:
                del self._counts[source]
                self._waiting.pop(source, asyncio.Event()).set()

    async def ended(self, source: ToolSource) -> None:
        """Returns once the source runs no call."""
        while source in self._counts:
            await self._waiting.setdefault(source, asyncio.Event()).wait()
