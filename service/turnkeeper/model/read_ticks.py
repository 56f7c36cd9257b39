"""Ends the pauses of many answers together: one timer for those of the same millisecond, and one look of the loop."""

import asyncio
import math
from typing import Final, Protocol

READ_AT_ONCE: Final = 128
"""Answers that are read in one iteration of the event loop: a replica may have a thousand."""
_ROUNDING: Final = 0.001
"""Milliseconds that a sum of times may be too large by its rounding."""


class Pause(Protocol):
    """A pause of one answer. Neither call raises."""

    def release(self) -> bool:
        """Lets the loop take what has come from the system. Returns False if it has it already."""
        ...

    def read(self) -> None:
        """Reads what has come."""
        ...


class ReadTicks:
    """The pauses that are under way on one event loop.

    At the end of a pause, the loop looks once at the sockets, between two rounds of callbacks. Then the answer is read.
    """

    def __init__(self) -> None:
        """Begins without pauses."""
        self._ending: dict[int, dict[Pause, None]] = {}
        """The pauses by the millisecond of the loop's clock at which they end."""

    def add(self, pause: Pause, seconds: float) -> int:
        """Ends the pause after so many seconds, at the next whole millisecond. Returns what `remove` takes."""
        loop = asyncio.get_running_loop()
        at = math.ceil((loop.time() + seconds) * 1000 - _ROUNDING)
        pauses = self._ending.get(at)
        if pauses is None:
            pauses = self._ending[at] = {}
            loop.call_at(at / 1000, self._end, at)
        pauses[pause] = None
        return at

    def remove(self, pause: Pause, at: int) -> None:
        """Forgets a pause, unless it has ended."""
        if (pauses := self._ending.get(at)) is not None:
            pauses.pop(pause, None)

    def _end(self, at: int) -> None:
        pauses = self._ending.pop(at)
        released = [pause for pause in pauses if pause.release()]
        if released:
            asyncio.get_running_loop().call_soon(self._look, released)
        if len(released) < len(pauses):
            for pause in pauses.keys() - set(released):
                pause.read()

    def _look(self, released: list[Pause]) -> None:
        asyncio.get_running_loop().call_soon(_read, released)


def _read(released: list[Pause]) -> None:
    """Reads the next answers. The others follow in the iterations of the loop after this."""
    for pause in released[:READ_AT_ONCE]:
        pause.read()
    if len(released) > READ_AT_ONCE:
        asyncio.get_running_loop().call_soon(_read, released[READ_AT_ONCE:])
