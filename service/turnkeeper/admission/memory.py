"""What the parts of this replica hold in memory, under one budget.

Each part counts what it holds. Beyond the budget, the parts that can do without something give it back, caches first;
while that is not enough, the gate refuses calls. Nothing that was accepted ends for lack of memory.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

PROCESS_BYTES: Final = 160 << 20
"""Bytes of a server without work: the interpreter, its libraries, the connections to the database."""
SMALL: Final = 1024
"""Bytes of a response that its call is counted with: nearly every delta has fewer."""
SLACK: Final = 16
"""Beyond the budget, this part of it is given back on top: so that not each further byte asks again."""


class MemoryPart:
    """A part of the replica that holds memory."""

    __slots__ = ("_changed", "used")

    def __init__(self, changed: Callable[[int], None]) -> None:
        """`changed` gets the bytes of each change."""
        self.used = 0
        """Bytes that it holds."""
        self._changed = changed

    def add(self, size: int) -> None:
        """Counts bytes that the part holds from now on, or, less than 0, has given back."""
        self.used += size
        self._changed(size)

    def add_large(self, size: int) -> None:
        """Counts as `add` does, but not what its holder's own share has room for: SMALL bytes or fewer."""
        if not -SMALL <= size <= SMALL:
            self.add(size)

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Counts bytes that the part holds inside the block."""
        self.add(size)
        try:
            yield
        finally:
            self.add(-size)


class MemoryBudget:
    """The bytes that this replica may use, and those that its parts hold."""

    def __init__(self, most: int | None = None) -> None:
        """`most` in bytes; None: no limit."""
        self.most = sys.maxsize if most is None else most
        self._left = self.most - PROCESS_BYTES
        self._parts: dict[str, MemoryPart] = {}
        self._shrinking: list[Callable[[int], object]] = []

    @property
    def is_full(self) -> bool:
        """True while the parts hold more than there is, though each has given back what it could."""
        return self._left < 0

    def used(self) -> Mapping[str, int]:
        """Returns the bytes by part, those of the process itself included."""
        return {"process": PROCESS_BYTES, **{name: part.used for name, part in self._parts.items()}}

    def part(self, name: str, *, shrink: Callable[[int], object] | None = None) -> MemoryPart:
        """Returns a new part. `shrink` is called beyond the budget: it gives back so many bytes, if it can.

        The part that was added first gives back first.
        """
        if shrink is not None:
            self._shrinking.append(shrink)
        self._parts[name] = MemoryPart(self._change)
        return self._parts[name]

    def reserved(self, name: str, *, share: float, most: int) -> tuple[MemoryPart, int]:
        """Returns a new part with bytes of its own, and how many: a share of the budget, `most` at most.

        It counts what it holds, and keeps to its bytes by itself. No other part can use them.
        """
        size = max(0, min(most, int(share * self._left)))
        self._left -= size
        self._parts[name] = MemoryPart(lambda _: None)
        return self._parts[name], size

    def _change(self, size: int) -> None:
        self._left -= size
        if self._left < 0 < size:
            for shrink in self._shrinking:
                shrink(self.most // SLACK - self._left)
                if self._left >= 0:
                    break
