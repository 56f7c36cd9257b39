"""Admits calls, or refuses them with the time after which to try again."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from enum import Enum
from typing import Final, Protocol

from turnkeeper.admission.limit import WINDOW
from turnkeeper.admission.load import Load
from turnkeeper.admission.memory import MemoryBudget
from turnkeeper.errors import Overloaded


class Kind(Enum):
    """The kinds of calls, those that are refused first in front."""

    WATCH = "watch"
    MESSAGE = "message"
    READ = "read"
    DECISION = "decision"


SHARES: Final[Mapping[Kind, float]] = {Kind.WATCH: 0.5, Kind.MESSAGE: 1.0, Kind.READ: 2.0, Kind.DECISION: 4.0}
"""A call is refused while the calls at work, of all kinds, are this many times the limit."""
MOST_WAITING: Final = 20_000
"""Calls that wait and streams, together: each costs memory."""
STANDING_WAIT: Final = 0.5
"""Seconds in which an accepted turn must begin while the replica is overloaded: a longer queue would only make it late.

A queue behind slow models alone may be as long as `accept_wait` allows.
"""
CALL_BYTES: Final = 48 * 1024
"""Memory of a call, of an idle stream too: its objects in gRPC and here, and the bytes that may wait in its window."""
PROBES: Final = 4
"""Looks at the event loop in a window."""
SLOWEST_RETRY: Final = 20.0
"""Calls a second that refused callers make again, at least: fewer would leave the replica idle after an overload."""
RETRY_MIN: Final = 0.5
"""Seconds that a refused caller waits, at least, before the jitter of a quarter."""
RETRY_MAX: Final = 10.0
STEP: Final = timedelta(milliseconds=50)
"""Delays are rounded to it, so that refusals are few and need not be written anew."""


class Recorder(Protocol):
    """What the gate reports to the metrics."""

    def refusal(self, kind: str, *, reason: str) -> None:
        """Counts a call that was refused."""

    def set_call_limit(self, count: int) -> None:
        """Sets the limit of calls at work."""


class CallWatcher(Protocol):
    """What is to know how an admitted call goes on."""

    def rests(self, change: int) -> None:
        """Called with 1 when the call begins to wait, and with -1 when it no longer does."""

    def ended(self) -> None:
        """Called when the call ends."""


class AdmittedCall:
    """A call that was admitted."""

    __slots__ = ("_gate", "_is_at_work", "_kind", "_size", "_turns", "wanted_until", "watcher")

    def __init__(self, gate: "Gate", kind: Kind) -> None:
        self.wanted_until = math.inf
        """Monotonic seconds at which its caller's deadline passes."""
        self.watcher: CallWatcher | None = None
        self._gate = gate
        self._kind = kind
        self._is_at_work = True
        self._turns = 0
        self._size = 0
        self.hold(CALL_BYTES)

    def hold(self, size: int) -> None:
        """Counts bytes that are held until the call ends."""
        self._size += size
        self._gate.calls.add(size)

    def rest(self) -> None:
        """Counts the call as one that waits, no longer as one at work."""
        if self._is_at_work:
            self._is_at_work = False
            self._gate.end_work(turns=self._turns)
            self._gate.waiting += 1
            if self.watcher is not None:
                self.watcher.rests(1)

    def resume(self) -> None:
        """Counts the call as one at work again. Raises Overloaded if those are too many."""
        if not self._is_at_work:
            self._gate.check(self._kind)
            self._gate.begin_work(turns=self._turns)
            self._is_at_work = True
            self._gate.waiting -= 1
            if self.watcher is not None:
                self.watcher.rests(-1)

    def add_turn(self) -> None:
        """Counts the turn that the call is to add, once its caller is known: no other may use up what is left.

        Raises Overloaded.
        """
        self._gate.take_turn(self._kind)
        self._turns = 1

    def withdraw(self) -> None:
        """Gives the turn back that the call was to add: the call is refused after all."""
        if self._turns:
            self._gate.give_turn_back()

    def end(self) -> None:
        """Counts the call off, with what it holds. Called once."""
        self._gate.calls.add(-self._size)
        if self._is_at_work:
            self._gate.end_work(turns=self._turns)
        else:
            self._gate.waiting -= 1
            if self.watcher is not None:
                self.watcher.rests(-1)
        if self.watcher is not None:
            self.watcher.ended()


CURRENT: ContextVar[AdmittedCall | None] = ContextVar("the call that this task works for", default=None)


def rest() -> None:
    """Counts the current call as one that waits. Called where calls begin to wait for something to happen."""
    if (call := CURRENT.get()) is not None:
        call.rest()


def resume() -> None:
    """Counts the current call as one at work again. Raises Overloaded if those are too many."""
    if (call := CURRENT.get()) is not None:
        call.resume()


@contextmanager
def resting() -> Iterator[None]:
    """Counts the current call as one that waits for as long as the block lasts. Raises Overloaded at its end."""
    rest()
    yield
    resume()


def add_turn() -> None:
    """Counts the turn that the current call is to add. Raises Overloaded."""
    if (call := CURRENT.get()) is not None:
        call.add_turn()


def wanted_until() -> float:
    """Returns when the deadline of the current call passes, in monotonic seconds; infinity if there is none."""
    return math.inf if (call := CURRENT.get()) is None else call.wanted_until


class Gate:
    """Counts the calls under way, and refuses those that are too many."""

    def __init__(
        self,
        load: Load,
        accept_wait: timedelta,
        *,
        jitter: Callable[[], float],
        recorder: Recorder,
        memory: MemoryBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`accept_wait`: how soon an accepted turn must begin. `jitter` returns a random number from 0 to 1."""
        self.memory = memory or MemoryBudget()
        self.calls = self.memory.part("calls")
        self.at_work = 0
        self.waiting = 0
        self._limit = load.limit
        self._backlog = load.backlog
        self._turn_rate = load.rate
        self._accept_wait = accept_wait.total_seconds()
        self._clock = clock
        self._jitter = jitter
        self._recorder = recorder
        self._admitted = 0
        self._rate = SLOWEST_RETRY
        self._next_retry = 0.0

    def admit(self, kind: Kind, *, adds_turn: bool = False) -> AdmittedCall:
        """Returns the admitted call. `adds_turn`: it asks for a turn, which `add_turn` counts. Raises Overloaded."""
        self.check(kind)
        if self.waiting >= MOST_WAITING and kind is not Kind.DECISION:
            raise self.refused(kind, "calls_waiting")
        if self.memory.is_full and kind is not Kind.DECISION:
            raise self.refused(kind, "memory")
        most = min(self._accept_wait, STANDING_WAIT) if self._limit.is_overloaded else self._accept_wait
        if adds_turn and (seconds := self._backlog.seconds()) > most:
            raise self.refused(kind, "accept_wait", after=seconds - most)
        if adds_turn and not self._turn_rate.has_room():
            raise self.refused(kind, "turn_rate")
        self._admitted += 1
        self.begin_work(turns=0)
        return AdmittedCall(self, kind)

    def take_turn(self, kind: Kind) -> None:
        """Counts a turn that an admitted call at work is to add. Raises Overloaded."""
        if not self._turn_rate.take():
            raise self.refused(kind, "turn_rate")
        self._backlog.coming += 1

    def give_turn_back(self) -> None:
        """Gives back a turn that was admitted and is not wanted any more."""
        self._turn_rate.give_back()

    def begin_work(self, *, turns: int) -> None:
        """Counts one further call at work, and the turns that it is to add."""
        self.at_work += 1
        self._backlog.coming += turns
        self._limit.at_work(self.at_work)

    def end_work(self, *, turns: int) -> None:
        """Counts off a call that is no longer at work, and the turns that it was to add."""
        self.at_work -= 1
        self._backlog.coming -= turns

    def check(self, kind: Kind) -> None:
        """Raises Overloaded if the calls at work are too many for a call of this kind."""
        if self.at_work >= self._limit.calls * SHARES[kind]:
            raise self.refused(kind, "calls_at_work")

    def refused(self, kind: Kind, limit: str, *, after: float = 0.0) -> Overloaded:
        """Returns the refusal by a limit. The caller is to try again after `after` seconds or later."""
        self._recorder.refusal(kind.value, reason=limit)
        seconds = min(max(after, self._retry_after()), RETRY_MAX) * (0.75 + 0.5 * self._jitter())
        return Overloaded(metadata={"limit": limit}, retry_after=STEP * round(seconds / STEP.total_seconds()))

    def _retry_after(self) -> float:
        """Returns seconds such that refused callers come back one after the other, as fast as calls are admitted."""
        now = self._clock()
        self._next_retry = min(max(self._next_retry, now + RETRY_MIN) + 1 / self._rate, now + RETRY_MAX)
        return self._next_retry - now

    async def run(self) -> None:
        """Looks at the event loop and adapts the limit, until it is cancelled."""
        while True:
            for _ in range(PROBES):
                due = self._clock() + WINDOW / PROBES
                await asyncio.sleep(WINDOW / PROBES)
                self._limit.late(max(0.0, self._clock() - due))
            self.end_window()

    def end_window(self) -> None:
        """Adapts the limit, and the rate at which refused callers come back, to the last window."""
        self._limit.end_window()
        self._turn_rate.end_window(is_overloaded=self._limit.has_signs, at_work=self.at_work)
        self._recorder.set_call_limit(round(self._limit.calls))
        self._rate = max(SLOWEST_RETRY, 0.9 * self._rate + 0.1 * self._admitted / WINDOW)
        self._admitted = 0
