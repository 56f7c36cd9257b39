"""Group commit: what waits to be written to different heads is committed as one transaction.

While one commit is in flight the next gathers; what comes alone goes at once. All of a batch is stored, or nothing of
it; then whoever moved leaves it and goes alone, and the rest is committed again.
"""

import asyncio
import time
from collections.abc import Collection, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar

from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import ClientSession, Document
from turnkeeper.store.mongo.transactions.attempt import Attempt
from turnkeeper.store.mongo.transactions.transaction import Transaction, Transactions
from turnkeeper.store.mongo.transactions.writes import Obstacle, Stopped

MOST: Final = 32
"""Entries of one batch."""
MOST_BYTES: Final = 4 << 20
"""Of their events' payloads."""
PATIENCE_S: Final = 0.25
"""The next batch does not wait for longer: a connection that went dead must not hold up the others."""
HOT_S: Final = 1.0
"""What is written to a head that moved under a batch goes alone for so long."""

T = TypeVar("T")


@dataclass(slots=True, eq=False, kw_only=True)
class Entry(Generic[T]):
    """What is to be written to one head, and who waits for it.

    `head`: the filter under which its head is written. `size`: bytes that count. `alone`: it is likely to lose.
    """

    head: Document
    transaction: Transaction[T]
    size: int = 0
    alone: bool = False
    deadline: float = 0.0
    done: asyncio.Future[T] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def key(self) -> SessionKey:
        return keys.session_of(self.head["_id"])

    def settle(self, result: T) -> None:
        if not self.done.done():
            self.done.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # its caller may have gone away


class GroupCommit:
    """One on every replica."""

    def __init__(self, transactions: Transactions) -> None:
        self.grouping = True
        """Off on a sharded cluster: there a transaction stays on one shard."""
        self._transactions = transactions
        self._waiting: list[Entry[Any]] = []
        self._flying = False
        self._hot: dict[SessionKey, float] = {}

    async def commit(self, entry: Entry[T]) -> T:
        """What became of it, known for certain; a caller that is cancelled cancels nothing.

        Raises ServiceUnavailable at the deadline; an unknown outcome is then pursued without the caller.
        """
        entry.deadline = self._transactions.deadline()
        if entry.alone or not self.grouping or self._is_hot(entry.key):
            self._start([entry], self._alone(entry))
        else:
            self._waiting.append(entry)
            if not self._flying:
                self._flying = True
                self._transactions.tasks.start(self._fly()).add_done_callback(self._landed)
        return await entry.done

    def _start(self, entries: Sequence[Entry[Any]], work: Coroutine[Any, Any, None]) -> None:
        self._transactions.tasks.start(work).add_done_callback(partial(_over, entries))

    async def _alone(self, entry: Entry[T], *, met: Obstacle | None = None, after: Attempt | None = None) -> None:
        """`met`: what stopped it in this other attempt."""
        attempt = self._transactions.attempt(entry.deadline)
        if after is not None:
            attempt.follow(after)
        try:
            entry.settle(await self._transactions.pursue(entry.transaction, attempt, met=met))
        finally:
            self._transactions.leave(attempt)

    async def _fly(self) -> None:
        """One batch after the other, while there are any."""
        while batch := self._next():
            tried = asyncio.Event()
            self._start(batch, self._together(batch, tried))
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await tried.wait()
        self._flying = False

    def _landed(self, flight: asyncio.Task[None]) -> None:
        """Nobody is left behind when it was cancelled, perhaps before it began."""
        if flight.cancelled() or flight.exception() is not None:
            left, self._waiting, self._flying = self._waiting, [], False
            _over(left, flight)

    def _next(self) -> list[Entry[Any]]:
        """Those that waited longest, one of each session. Whoever's time is up has waited for nothing.

        What has become hot meanwhile goes alone: each that lost in a batch would have the rest written twice.
        """
        batch: dict[SessionKey, Entry[Any]] = {}
        left: list[Entry[Any]] = []
        room, now = MOST_BYTES, time.monotonic()
        for entry in self._waiting:
            if entry.deadline <= now:
                entry.fail(ServiceUnavailable())
            elif self._is_hot(entry.key):
                self._start([entry], self._alone(entry))
            elif len(batch) < MOST and entry.key not in batch and (not batch or entry.size <= room):
                batch[entry.key] = entry
                room -= entry.size
            else:
                left.append(entry)
        self._waiting = left
        return list(batch.values())

    async def _together(self, batch: list[Entry[Any]], tried: asyncio.Event) -> None:
        """Until all that stay in the batch are settled. `tried` is set when the next need not wait for this one."""
        attempt = self._transactions.attempt(min(entry.deadline for entry in batch))
        try:
            stopped = await self._once(batch, attempt)
            tried.set()
            if stopped is not None:
                await self._sort_out(batch, attempt, stopped)
        finally:
            tried.set()
            self._transactions.leave(attempt)

    async def _once(self, batch: Sequence[Entry[Any]], attempt: Attempt) -> Stopped | None:
        """None: it is committed, and all are settled."""
        try:
            await attempt.once(self._transactions.writes(*(entry.transaction for entry in batch)))
        except Stopped as stopped:
            return stopped
        except Exception:
            if len(batch) == 1:
                raise
            return Stopped(Obstacle.MISS)  # refused for the sake of one: alone, each is told its own
        for entry in batch:
            entry.settle(entry.transaction.result)
        return None

    async def _sort_out(self, batch: list[Entry[Any]], attempt: Attempt, stopped: Stopped | None) -> None:
        """Nothing of it is stored, as far as anybody knows: whoever was in the way leaves, the rest goes again."""
        again = False
        while stopped is not None:
            if len(batch) == 1:
                self._heat(batch)
                found = await self._transactions.pursue(batch[0].transaction, attempt, met=stopped.obstacle)
                batch[0].settle(found)
                return
            if stopped.obstacle is Obstacle.UNKNOWN:
                await asyncio.gather(*(_ask(entry, attempt) for entry in batch))
                return
            leaving = await self._leaving(batch, attempt, stopped)
            self._heat(leaving)
            if not leaving and (again or stopped.obstacle is Obstacle.MISS or not await attempt.pause(0)):
                leaving = list(batch)
            again = not leaving
            for entry in leaving:
                batch.remove(entry)
                self._start([entry], self._alone(entry, met=Obstacle.CONFLICT, after=attempt))
            stopped = await self._once(batch, attempt) if batch else None

    async def _leaving(self, batch: Sequence[Entry[Any]], attempt: Attempt, stopped: Stopped) -> Sequence[Entry[Any]]:
        """Whose insert met its like; else all whose head has moved; none when it was something else."""
        if stopped.culprit is not None:
            return [entry for entry in batch if entry.transaction is stopped.culprit]
        try:
            unmoved = await attempt.look(partial(self._unmoved, batch), stopped.obstacle)
        except Exception:  # noqa: BLE001 - one whose filter cannot even be sent is found out when each is alone
            return []
        return [entry for entry in batch if entry.key not in unmoved]

    async def _unmoved(self, batch: Sequence[Entry[Any]], reader: ClientSession, _: Obstacle) -> Collection[SessionKey]:
        match = {**keys.where_sessions([entry.key for entry in batch]), "$or": [entry.head for entry in batch]}
        heads = self._transactions.connection.heads.find(match, {"_id": 1}, session=reader)
        return {keys.session_of(head["_id"]) async for head in heads}

    def _heat(self, entries: Iterable[Entry[Any]]) -> None:
        now = time.monotonic()
        self._hot = {key: until for key, until in self._hot.items() if until > now}
        self._hot |= {entry.key: now + HOT_S for entry in entries}

    def _is_hot(self, key: SessionKey) -> bool:
        return self._hot.get(key, 0.0) > time.monotonic()


def _over(entries: Sequence[Entry[Any]], work: asyncio.Task[None]) -> None:
    """Whatever became of the work, even if it never began, nobody waits for ever."""
    if work.cancelled():
        error: BaseException | None = ServiceUnavailable()
    else:
        error = work.exception()
    if isinstance(error, Exception):
        for entry in entries:
            entry.fail(error)


async def _ask(entry: Entry[Any], attempt: Attempt) -> None:
    """What the database has of it, where nobody said what became of its commit."""
    try:
        found = await attempt.look(entry.transaction.look, Obstacle.UNKNOWN)
    except Exception as error:  # noqa: BLE001 - it is this waiter's, and nobody else's
        entry.fail(error)
        return
    if found is None:
        entry.fail(ServiceUnavailable())
    else:
        entry.settle(found)
