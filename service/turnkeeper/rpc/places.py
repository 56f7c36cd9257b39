"""Places that calls of many connections share: no connection keeps the others out."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress

GiveUp = Callable[[Callable[[str], bool]], bool]
"""Ends the oldest call of the connections for which its argument is True. Returns False if all are too young."""


class Places:
    """So many calls at once, of which one connection has half at most. Further ones stand in line.

    A free place is given to the connection that has the fewest, and there to the call that came first.
    """

    def __init__(self, count: int, *, line: int, give_up: GiveUp, pace: float) -> None:
        """`line`: calls that may stand in line. While one does, `give_up` is called once in `pace` seconds."""
        self._free, self._share = count, max(1, count // 2)
        self._line_length = line
        self._give_up, self._pace = give_up, pace
        self._held: Counter[str] = Counter()
        self._ending = 0  # calls that were given up and have not yet freed their places
        self._lines: dict[str, deque[asyncio.Future[bool]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def try_take(self, peer: str) -> bool:
        """Takes a place for a call of this connection. Returns False if none is free for it."""
        if not self._free or self._held[peer] >= self._share:
            return False
        self._free -= 1
        self._held[peer] += 1
        return True

    async def take_in_line(self, peer: str, *, seconds: float) -> bool:
        """Waits for a place, and takes it. Returns False if none was free in time, or the line is full."""
        if not self._has_room_in_line(peer):
            return False
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        line = self._lines.setdefault(peer, deque())
        line.append(place)
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

    def free(self, peer: str) -> None:
        """Gives back a place of this connection."""
        self._free += 1
        self._ending = max(0, self._ending - 1)
        self._held[peer] -= 1
        if not self._held[peer]:
            del self._held[peer]
        for waiting in self._by_places():
            if self.try_take(waiting):
                first = self._lines[waiting].popleft()
                self._drop_empty(waiting)
                first.set_result(True)
                return

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def _by_places(self) -> list[str]:
        """Returns the connections in line, those with the fewest places first."""
        return sorted(self._lines, key=lambda peer: self._held[peer])

    def _has_room_in_line(self, peer: str) -> bool:
        """Returns True if a call of this connection may join the line. The longest line gives up its last call."""
        if self._waiting < self._line_length:
            return True
        longest = max(self._lines, key=lambda other: len(self._lines[other]))
        if len(self._lines[longest]) <= len(self._lines.get(peer, ())) + 1:
            return False
        self._lines[longest].pop().set_result(False)
        return True

    def _make_room_for(self, peer: str) -> None:
        """Gives up the oldest call of the connection if that has its share, or of those that have the most places."""
        if self._ending >= self._waiting:
            return
        held, most = self._held, max(self._held.values(), default=0)
        has_share = held[peer] >= self._share
        self._ending += self._give_up(lambda other: other == peer if has_share else held[other] == most)

    def _begin_timer(self) -> None:
        if self._timer is None and self._lines:
            self._timer = asyncio.get_running_loop().call_later(self._pace, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        for peer in self._by_places()[:1]:
            self._make_room_for(peer)
        self._begin_timer()

    def _leave_line(self, peer: str, place: asyncio.Future[bool]) -> None:
        if place in (line := self._lines.get(peer, deque())):
            line.remove(place)
            self._drop_empty(peer)

    def _drop_empty(self, peer: str) -> None:
        if not self._lines[peer]:
            del self._lines[peer]
