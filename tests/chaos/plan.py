"""Plans the faults by seed: the same kinds in the same order with the same draws, every time.

Faults come in four lanes, one at a time in each: to a server, to the database, to a tool server, and short ones to the
wire between servers and database. Their times depend on how long earlier faults took, their targets on which server
has the work.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Lane(StrEnum):
    SERVERS = "servers"
    DATABASE = "database"
    WIRE = "wire"
    TOOLS = "tools"


PAUSES: Final[Mapping[Lane, tuple[float, float]]] = {
    Lane.SERVERS: (1.0, 2.5),
    Lane.DATABASE: (4.0, 7.0),
    Lane.WIRE: (1.0, 3.0),
    Lane.TOOLS: (2.0, 4.0),
}
"""Seconds between the end of a fault and the next one, in which turns progress."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A planned fault. `rng` is its own."""

    lane: Lane
    number: int
    kind: str
    pause: float
    seed: str

    @property
    def rng(self) -> random.Random:
        return random.Random(self.seed)


def planned(lane: Lane, kinds: list[str], *, seed: int) -> Iterator[Planned]:
    """Yields faults without end: each round has every kind once, in an order of its own."""
    if not kinds:
        return
    rng = random.Random(f"{seed} {lane}")
    number = 0
    while True:
        for kind in rng.sample(sorted(kinds), len(kinds)):
            number += 1
            pause = rng.uniform(*PAUSES[lane])
            yield Planned(lane, number, kind, round(pause, 3), f"{seed} {lane} {number} {kind}")
