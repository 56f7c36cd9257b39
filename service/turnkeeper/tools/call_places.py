"""Places for calls that run at the same time, taken in the order in which they were requested."""

import asyncio
from collections import deque


class CallPlaces:
    """A number of places. Used in one event loop."""

    def __init__(self, most: int) -> None:
        """`most`: places in all."""
        self._free = most
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Takes a place if one is free for which no caller waits. Returns False otherwise."""
        if self._waiting or not self._free:
            return False
        self._free -= 1
        return True

    async def wait(self) -> None:
        """Takes the next place that is free once all earlier callers have one."""
        if self.take():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Gives a place to the caller that has waited for it longest, if there is one."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
