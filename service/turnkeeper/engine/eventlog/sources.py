"""Where the engine's times, ids and random numbers come from."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from turnkeeper import ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where times, ids and random numbers come from."""

    now: Callable[[], datetime]
    """Returns the time that people see. Times that are compared come from the database's clock."""
    new_id: Callable[[], str]
    """Returns an id that was never used."""
    jitter: Callable[[], float]
    """Returns a random number from 0 to 1."""

    @classmethod
    def of_machine(cls, *, jitter: Callable[[], float]) -> Self:
        """Returns the machine's clock, and ids from its source of randomness."""
        return cls(now=_now, new_id=ids.source(time.time, ids.RandomBits()), jitter=jitter)


def _now() -> datetime:
    """Returns the time in whole milliseconds, as the database stores it: so the first answer equals later reads."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
