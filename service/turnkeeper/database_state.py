"""Whether the private database serves, as the process that runs it tells those that use it."""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeAlias


class DatabaseState(StrEnum):
    """A state of the private database. One that is not private counts as UP: its fail-over takes moments."""

    UP = "up"
    DOWN = "down"
    """It has ended and is started again."""
    LOST = "lost"
    """It has ended and cannot be started again: the server ends."""


NotifyState: TypeAlias = Callable[[DatabaseState], Awaitable[None]]
