"""Callers that change one session stand in line, so that their transactions do not fight over its head.

One caller of a session decides and stores at a time, on this replica; the others wait in the order in which they came.
Before, one after the other looks whether it has anything to store. Looks and changes take turns: of a session's
callers one is at the database at a time, so that callers of other sessions find it free. A caller that is cancelled
gives up its place. The owner of the session's turn stands in no line: callers let it first.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from turnkeeper.admission.gate import rest, resume, wanted_until
from turnkeeper.domain.session import SessionKey
from turnkeeper.durations import jittered
from turnkeeper.errors import ServiceUnavailable, SessionContended, SessionError

MOST_CALLERS: Final = 256
"""Callers of one session on this replica that stand in line, the one that stores its change included."""
PATIENCE_S: Final = 7.0
"""Seconds that a caller stands in line, at most: less than the 8 s that a proxy gives a try, and clients a call."""
OWNER_FIRST_S: Final = 1.0
"""Seconds that a caller lets the owner of the turn first, at most: the owner may wait for the database."""
IN_VAIN_S: Final = 1.0
"""Seconds for which a caller waited for a database that is down, at least: those behind it would wait in vain, too."""
RETRY_AFTER: Final = timedelta(seconds=1)
"""After about this time a caller that was refused sends its call again."""


@dataclass(slots=True, eq=False)
class _Line:
    """The callers of one session, and the writes of its owner that are under way."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the caller that stores its change. It is passed on in the order in which callers came."""
    look: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the caller that looks, likewise."""
    at_database: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by one of these two."""
    callers: int = 0
    lookers: int = 0
    """Callers that look, or wait for their look."""
    owner_writes: int = 0
    no_owner_write: asyncio.Event = field(default_factory=asyncio.Event)
    is_unavailable: bool = False
    """The database did not answer the caller that left last."""
    is_in_vain: bool = False
    """Nor did it for IN_VAIN_S."""

    @property
    def has_one(self) -> bool:
        """Returns True if a single caller looks or stands in line."""
        return self.callers + self.lookers == 1

    @property
    def is_idle(self) -> bool:
        """Returns True if no caller and no owner needs it."""
        return not (self.callers or self.lookers or self.owner_writes)

    def ended(self, error: BaseException | None, *, since: float) -> None:
        """Takes how a caller ended that was at the database since this time of `time.monotonic`."""
        now = time.monotonic()
        self.is_unavailable = isinstance(error, ServiceUnavailable)
        # The error of a caller whose own deadline has passed tells nothing of the database.
        self.is_in_vain = self.is_unavailable and now - since >= IN_VAIN_S and now < wanted_until()


class Place:
    """The first place in a session's line. Leaving it, once or more often, lets the next caller go on."""

    def __init__(self, lines: "SessionLines", key: SessionKey, line: _Line) -> None:
        self._lines = lines
        self._key = key
        self._line: _Line | None = line
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._line is not None:
            self._line.ended(error, since=self._since)
        self.leave()

    def leave(self) -> None:
        """Lets the next caller go on."""
        line, self._line = self._line, None
        if line is not None:
            line.turn.release()
            line.at_database.release()
            self._lines.left(self._key, line)

    async def let_owner_first(self) -> None:
        """Waits until the owner's writes that are under way here have ended, OWNER_FIRST_S at most."""
        line = self._line
        if line is not None and line.owner_writes:
            with suppress(TimeoutError):
                async with asyncio.timeout(OWNER_FIRST_S):
                    await line.no_owner_write.wait()


class SessionLines:
    """The lines of all sessions that are being changed on this replica."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        """`jitter` returns a random number from 0 to 1."""
        self._jitter = jitter
        self._lines: dict[SessionKey, _Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def is_busy(self, key: SessionKey) -> bool:
        """Returns True if a caller that comes now has to wait."""
        line = self._lines.get(key)
        return line is not None and line.callers > 0

    async def enter(self, key: SessionKey) -> Place:
        """Returns the first place once it is this caller's.

        Raises SessionContended at once if MOST_CALLERS stand in line, and after PATIENCE_S in it, and once the caller's
        deadline has passed. Raises ServiceUnavailable to all who stand in line, or wait for their look, once the one
        before them waited IN_VAIN_S for a database that is unavailable: each would wait for it as long. A caller that
        stood in line is at work again; raises Overloaded if too many calls are.
        """
        line = self._lines.setdefault(key, _Line())
        if line.callers >= MOST_CALLERS:
            raise self.contended(key)
        line.callers += 1
        is_first = line.callers == 1
        try:
            await self._wait(key, line, line.turn)
        except BaseException:
            self.left(key, line)
            raise
        place = Place(self, key, line)
        try:
            if line.is_in_vain and not is_first:
                raise ServiceUnavailable(session_id=key.session_id)
            self._check_wanted(key)
            resume()
        except SessionError:
            place.leave()
            raise
        return place

    @asynccontextmanager
    async def look(self, key: SessionKey) -> AsyncIterator[None]:
        """Lets this caller read the session inside the block, one at a time.

        Raises SessionContended if MOST_CALLERS wait for their look, and otherwise what `enter` raises.
        """
        line = self._lines.setdefault(key, _Line())
        if line.lookers >= MOST_CALLERS:
            raise self.contended(key)
        line.lookers += 1
        is_first = line.has_one
        try:
            await self._wait(key, line, line.look)
            try:
                if line.is_in_vain and not is_first:
                    raise ServiceUnavailable(session_id=key.session_id)
                self._check_wanted(key)
                resume()
                since = time.monotonic()
                try:
                    yield
                except BaseException as error:
                    line.ended(error, since=since)
                    raise
                line.ended(None, since=since)
            finally:
                line.look.release()
                line.at_database.release()
        finally:
            line.lookers -= 1
            self._drop_idle(key, line)

    async def _wait(self, key: SessionKey, line: _Line, turn: asyncio.Lock) -> None:
        """Waits for its turn, PATIENCE_S at most. Raises SessionContended or ServiceUnavailable then."""
        if line.has_one:  # beside others, a lock may be free and promised to one of them
            await turn.acquire()
            await line.at_database.acquire()
            return
        rest()  # it takes nothing from the calls on other sessions
        try:
            async with asyncio.timeout(PATIENCE_S):
                await turn.acquire()
                try:
                    await line.at_database.acquire()
                except BaseException:
                    turn.release()
                    raise
        except TimeoutError:
            raise self._not_moving(key, line) from None

    def _check_wanted(self, key: SessionKey) -> None:
        if time.monotonic() >= wanted_until():
            raise self.contended(key)

    @contextmanager
    def owner_writes(self, key: SessionKey) -> Iterator[None]:
        """Marks a change of the turn's owner as under way: no caller begins to store meanwhile."""
        line = self._lines.setdefault(key, _Line())
        line.owner_writes += 1
        line.no_owner_write.clear()
        try:
            yield
        finally:
            line.owner_writes -= 1
            if not line.owner_writes:
                line.no_owner_write.set()
            self._drop_idle(key, line)

    def left(self, key: SessionKey, line: _Line) -> None:
        """Counts a caller that left the line."""
        line.callers -= 1
        self._drop_idle(key, line)

    def contended(self, key: SessionKey) -> SessionContended:
        """Returns the error of a caller that must come again."""
        return SessionContended(session_id=key.session_id, retry_after=jittered(RETRY_AFTER, self._jitter()))

    def _not_moving(self, key: SessionKey, line: _Line) -> SessionError:
        return ServiceUnavailable(session_id=key.session_id) if line.is_unavailable else self.contended(key)

    def _drop_idle(self, key: SessionKey, line: _Line) -> None:
        if line.is_idle:
            del self._lines[key]
