"""The times of streams, and their planned end."""

import random
from dataclasses import dataclass

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.errors import ServerDraining, StreamRotated


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTimes:
    """The times of every stream, in seconds."""

    keep_alive: float
    """Silence after which the reader gets a keep-alive."""
    rotation: float
    """A stream's planned age at its end, ± 10 %."""

    def planned_end(self, began: float, rng: random.Random) -> float:
        """Returns the planned end of a stream that began at this time of a clock. `rng` spreads the ends of streams."""
        return began + self.rotation * rng.uniform(0.9, 1.1)


class StreamEnded(Exception):
    """A planned end of a stream, with the position where the client continues."""

    def __init__(self, error: StreamRotated | ServerDraining, position: StreamPosition) -> None:
        """`error` is what the client receives."""
        super().__init__(error.message)
        self.error = error
        self.position = position
