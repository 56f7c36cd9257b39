"""The turns that this replica accepted and that have not begun, and how fast turns begin."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from turnkeeper.domain.turn import Turn, TurnState

RATE_SECONDS: Final = 10.0
"""The rate of begun turns is that of this many seconds."""
FORGET_SECONDS: Final = 60.0
"""A turn that waits for longer is forgotten: another replica may have taken it."""
WAITING: Final = frozenset({TurnState.PENDING, TurnState.BACKING_OFF})


class Backlog:
    """Tells how long a turn that is accepted now waits until it begins."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self.room: Callable[[], float] = lambda: math.inf
        """Returns how many more turns may run at the same time."""
        self.coming = 0
        """Calls that were admitted, and whose turns are not stored yet."""
        self._clock = clock
        self._waiting: dict[str, tuple[float, str]] = {}
        """When each turn was stored, and its tenant."""
        self._tenants: Counter[str] = Counter()
        self._begun: deque[float] = deque()

    @property
    def waiting(self) -> int:
        """The turns that were accepted, or are to be tried again, and wait here."""
        self._forget(self._clock())
        return len(self._waiting)

    def waiting_of(self, tenant: str) -> int:
        """Returns how many of them are of this tenant."""
        self._forget(self._clock())
        return self._tenants[tenant]

    def stored(self, turn: Turn) -> None:
        """Takes a turn as this replica stored it."""
        if turn.state not in WAITING:
            self._left(turn.id)
        elif turn.id not in self._waiting:
            self._waiting[turn.id] = (self._clock(), turn.tenant)
            self._tenants[turn.tenant] += 1

    def began(self, turn_id: str) -> None:
        """Takes a turn that this replica begins to run."""
        now = self._clock()
        self._forget(now)
        self._left(turn_id)
        self._begun.append(now)

    def seconds(self) -> float:
        """Returns how long the turns before a new one take to begin; infinity if none began in RATE_SECONDS."""
        before = self.waiting + self.coming - self.room()
        if before <= 0:
            return 0.0
        return before * RATE_SECONDS / len(self._begun) if self._begun else math.inf

    def _forget(self, now: float) -> None:
        while self._begun and self._begun[0] < now - RATE_SECONDS:
            self._begun.popleft()
        while self._waiting:
            oldest = next(iter(self._waiting))
            if self._waiting[oldest][0] >= now - FORGET_SECONDS:
                break
            self._left(oldest)

    def _left(self, turn_id: str) -> None:
        """Counts off a turn, if it waits."""
        if (waiting := self._waiting.pop(turn_id, None)) is not None:
            self._tenants[waiting[1]] -= 1
            if not self._tenants[waiting[1]]:
                del self._tenants[waiting[1]]
