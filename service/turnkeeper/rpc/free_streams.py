"""The streams of health and reflection. No gate counts them: an overloaded replica answers them, too.

Anybody can open one of health, without a credential. So all of them together have a part of the memory of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from turnkeeper.admission.gate import CALL_BYTES, Gate, Kind
from turnkeeper.rpc.places import Places

MEMORY_SHARE: Final = 0.05
"""Of the memory that is left beside the process itself."""
MOST_BYTES: Final = 64 << 20
"""Bytes of these streams, at most: more than a thousand."""
LEAST: Final = 2
"""Streams that there may be in any case."""


class FreeStreams:
    """The open ones. One connection has half of them at most."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._memory, size = gate.memory.reserved("health_streams", share=MEMORY_SHARE, most=MOST_BYTES)
        self._places = Places(max(LEAST, size // CALL_BYTES), line=0, give_up=lambda _: False, pace=1.0)

    @contextmanager
    def open(self, peer: str) -> Iterator[None]:
        """Counts a stream of this connection while the block lasts. Raises Overloaded if there are too many."""
        if not self._places.try_take(peer):
            raise self._gate.refused(Kind.WATCH, "memory")
        self._memory.add(CALL_BYTES)
        try:
            yield
        finally:
            self._memory.add(-CALL_BYTES)
            self._places.free(peer)
