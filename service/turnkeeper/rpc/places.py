"""Places that calls of many connections share: no connection keeps the others out."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count as counting
from typing import Final

GiveUp = Callable[[Callable[[str], bool]], bool]
"""Ends the oldest call of the connections for which its argument is True. Returns False if all are too young."""

KNOWN: Final = 4096
"""Connections of which is known how their calls ended, at most: others are forgotten, the oldest knowledge first."""
KEPT_FREE: Final = 8
"""One place of so many is for connections whose calls were all in time: they need not wait until others are late."""
_IN_TIME: Final = -1
_UNKNOWN: Final = 0


class Places:
    """So many calls at once, of which one connection has half at most. Further ones stand in line.

    One of KEPT_FREE places is for connections whose calls were all in time.

    A free place is given to a connection whose calls were all in time, then to one of which nothing is known, then to
    one that was late. Of several it is the one that has the fewest places, and of those the one that was late longest
    ago, and there the call that came first. So those that hold places for long have them by turns, and no
    others wait for them.
    """

    def __init__(self, count: int, *, line: int, give_up: GiveUp, pace: float) -> None:
        """`line`: calls that may stand in line. While one does, `give_up` is called once in `pace` seconds."""
        self._free, self._share, self._kept_free = count, max(1, count // 2), count // KEPT_FREE
        self._line_length = line
        self._give_up, self._pace = give_up, pace
        self._held: Counter[str] = Counter()
        self._known: dict[str, int] = {}  # _IN_TIME, or when a connection was late last, as a number that grows
        self._times = counting(1)
        self._ending = 0  # calls that were given up and have not yet freed their places
        self._lines: dict[str, deque[asyncio.Future[bool]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def try_take(self, peer: str) -> bool:
        """Takes a place for a call of this connection. Returns False if none is free for it."""
        if not self._is_free_for(peer):
            return False
        self._free -= 1
        self._held[peer] += 1
        return True

    async def take_in_line(self, peer: str, *, seconds: float) -> bool:
        """Waits for a place, and takes it. Returns False if none was free in time, or the line is full."""
        if not self.has_room_for(peer):
            return False
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._join(peer, place)
        taken = False
        try:
            self._make_room_for(peer)
            self._begin_timer()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    taken = await asyncio.shield(place)
        finally:
            self._leave_line(peer, place)
            if not taken and place.done() and place.result():
                self.free(peer)
        return taken

    def free(self, peer: str, *, is_late: bool | None = None) -> None:
        """Gives back a place of this connection. `is_late`: its call took too long, or was given up; None: it left."""
        if is_late is not None:
            self._learn(peer, is_late=is_late)
        self._free += 1
        self._ending = max(0, self._ending - 1)
        self._held[peer] -= 1
        if not self._held[peer]:
            del self._held[peer]
        for waiting in self._in_order():
            if self.try_take(waiting):
                first = self._lines[waiting].popleft()
                self._drop_empty(waiting)
                first.set_result(True)
                return

    def _is_free_for(self, peer: str) -> bool:
        kept = 0 if self._known.get(peer) == _IN_TIME else self._kept_free
        return self._free > kept and self._held[peer] < self._share

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def _in_order(self) -> list[str]:
        """Returns the connections in line, the next one first."""
        known, held = self._known, self._held
        numbers = {peer: known.get(peer, _UNKNOWN) for peer in self._lines}
        return sorted(self._lines, key=lambda peer: (min(numbers[peer], 1), held[peer], numbers[peer]))

    def _learn(self, peer: str, *, is_late: bool) -> None:
        """Notes how a call of this connection has ended. One that was late once stays one."""
        number = self._known.pop(peer, _UNKNOWN)
        self._known[peer] = next(self._times) if is_late else number or _IN_TIME
        if len(self._known) > KNOWN:
            del self._known[next(iter(self._known))]

    def has_room_for(self, peer: str) -> bool:
        """Returns True if a call of this connection may join the line, or need not: the line is not full, or another
        connection's is longer.
        """
        if self._is_free_for(peer) or self._waiting < self._line_length:
            return True
        own = len(self._lines.get(peer, ())) + 1
        return any(len(line) > own for line in self._lines.values())

    def _join(self, peer: str, place: asyncio.Future[bool]) -> None:
        """Adds a place in line. If the line is full, the connection with the longest one gives up its last."""
        if self._waiting >= self._line_length:
            longest = max(self._lines.values(), key=len)
            longest.pop().set_result(False)
        self._lines.setdefault(peer, deque()).append(place)

    def _make_room_for(self, peer: str) -> None:
        """Gives up the oldest call of the connection if that has its share, or of those that have the most places; if
        that is too young, the oldest of those that were late before. One whose calls were all in time is the last to
        give up any: where the process itself is slow, its calls take long as well.
        """
        if self._ending >= self._waiting:
            return
        held, known, most = self._held, self._known, max(self._held.values(), default=0)
        if held[peer] >= self._share:
            self._ending += self._give_up(lambda other: other == peer)
            return
        self._ending += (
            self._give_up(lambda other: held[other] == most and known.get(other, _UNKNOWN) != _IN_TIME)
            or self._give_up(lambda other: known.get(other, _UNKNOWN) > 0)
            or self._give_up(lambda other: held[other] == most)
        )

    def _begin_timer(self) -> None:
        if self._timer is None and self._lines:
            self._timer = asyncio.get_running_loop().call_later(self._pace, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        for peer in self._in_order()[:1]:
            self._make_room_for(peer)
        self._begin_timer()

    def _leave_line(self, peer: str, place: asyncio.Future[bool]) -> None:
        if place in (line := self._lines.get(peer, deque())):
            line.remove(place)
            self._drop_empty(peer)

    def _drop_empty(self, peer: str) -> None:
        if not self._lines[peer]:
            del self._lines[peer]
