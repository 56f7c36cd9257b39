"""Group commit: writes to different heads that wait at the same time are committed as one transaction.

While one batch is being committed, the next one gathers; a single entry is committed at once, unless entries come
often (see `Gathering`). A batch is stored whole or not at all. If it is not, the entries whose head has changed leave
it and are committed alone, and the rest again.
"""

import asyncio
import math
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
from turnkeeper.store.mongo.transactions.gathering import Gathering
from turnkeeper.store.mongo.transactions.transaction import Transaction, Transactions, Unsettled
from turnkeeper.store.mongo.transactions.writes import Obstacle, TransactionStopped

MAX_ENTRIES: Final = 32
"""Entries of one batch, at most."""
MAX_BYTES: Final = 4 << 20
"""Payload bytes of one batch, at most, unless one entry has more."""
PATIENCE_S: Final = 0.25
"""Seconds that the next batch waits for the one before, at most: a dead connection must not delay all batches."""
HOT_S: Final = 1.0
"""Seconds for which entries of a head are committed alone after the head changed under a batch."""

T = TypeVar("T")


@dataclass(slots=True, eq=False, kw_only=True)
class Entry(Generic[T]):
    """What is to be written to one head, and the caller that waits for it."""

    head: Document
    """The filter under which the head is written; of one that is inserted, the filter of any head of its session."""
    transaction: Transaction[T]
    creates: bool = False
    """The head is inserted: it must not exist yet."""
    size: int = 0
    """Payload bytes."""
    alone: bool = False
    """Never in a batch: a conflict is likely."""
    deadline: float = 0.0
    """By the monotonic clock."""
    wanted_until: float = math.inf
    """By the same clock: an entry that still waits then is dropped."""
    done: asyncio.Future[T] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    unsettled: Unsettled[T] | None = None
    """Set before the caller gets an error, if the outcome was unknown then and is settled in the background."""

    @property
    def key(self) -> SessionKey:
        """Returns the session of the head."""
        return keys.session_of(self.head["_id"])

    def leave_unsettled(self) -> None:
        """Marks the outcome as one that is settled in the background."""
        if self.unsettled is None:
            self.unsettled = Unsettled(self.transaction, asyncio.get_running_loop().create_future())

    def settle(self, result: T) -> None:
        """Gives the caller the result, unless it has one."""
        if not self.done.done():
            self.done.set_result(result)

    @property
    def has_result(self) -> bool:
        """Returns True if the caller got a result, not an error."""
        return self.done.done() and not self.done.cancelled() and self.done.exception() is None

    def fail(self, error: Exception) -> None:
        """Raises the error to the caller, unless it has a result."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # the caller may be cancelled; asyncio must not warn of an error without a reader


class GroupCommit:
    """Commits entries, in batches where possible. One on every replica."""

    def __init__(
        self,
        transactions: Transactions,
        *,
        most: int = MAX_ENTRIES,
        most_bytes: int = MAX_BYTES,
        gathering: Gathering | None = None,
    ) -> None:
        """`most` and `most_bytes` limit a batch; an entry with more bytes is a batch of its own."""
        self._most = most
        self._most_bytes = most_bytes
        self.grouping = True
        """False on a sharded cluster, where a transaction must stay on one shard."""
        self._transactions = transactions
        self._waiting: list[Entry[Any]] = []
        self._committing = False
        self._gathering = gathering or Gathering(time.monotonic)
        self._hot: dict[SessionKey, float] = {}

    async def commit(self, entry: Entry[T]) -> T:
        """Returns the entry's result, which is certain. Cancelling the caller does not cancel the commit.

        Raises ServiceUnavailable at the deadline. An unknown outcome is then settled in the background.
        """
        entry.deadline = self._transactions.deadline()
        if entry.alone or not self.grouping or self._is_hot(entry.key):
            self._start([entry], self._commit_alone(entry))
        else:
            self._waiting.append(entry)
            self._gathering.arrived()
            if not self._committing:
                self._committing = True
                self._transactions.tasks.start(self._commit_batches()).add_done_callback(self._batches_ended)
        return await entry.done

    def _start(self, entries: Sequence[Entry[Any]], work: Coroutine[Any, Any, None]) -> None:
        self._transactions.tasks.start(work).add_done_callback(partial(_fail_all, entries))

    async def _commit_alone(
        self, entry: Entry[T], *, met: Obstacle | None = None, after: Attempt | None = None
    ) -> None:
        """Commits one entry. `met` is the obstacle of the attempt `after`, if one was made in a batch."""
        attempt = self._transactions.attempt(entry.deadline)
        if after is not None:
            attempt.follow(after)
        try:
            entry.settle(await self._transactions.pursue(entry.transaction, attempt, met=met))
        finally:
            self._leave(attempt, [entry])

    async def _commit_batches(self) -> None:
        """Commits one batch after the other while entries wait."""
        while self._waiting:
            await self._gather()
            if not (batch := self._next()):
                continue
            tried = asyncio.Event()
            self._start(batch, self._commit_batch(batch, tried))
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await tried.wait()
        self._committing = False

    async def _gather(self) -> None:
        """Waits for further entries if that pays, unless those that wait are enough for a batch."""
        if len(self._waiting) < self._most and (seconds := self._gathering.seconds()):
            await asyncio.sleep(seconds)
            self._gathering.ended(len(self._waiting))

    def _batches_ended(self, task: asyncio.Task[None]) -> None:
        """Fails all waiting entries if the task was cancelled, perhaps before it began."""
        if task.cancelled() or task.exception() is not None:
            left, self._waiting, self._committing = self._waiting, [], False
            _fail_all(left, task)

    def _next(self) -> list[Entry[Any]]:
        """Returns the next batch: the entries that waited longest, one of each session.

        Entries past their deadline, or that are no longer wanted, fail with ServiceUnavailable. Entries of heads that
        changed under a batch lately are committed alone: each that is refused within a batch makes the rest be written
        twice.
        """
        batch: dict[SessionKey, Entry[Any]] = {}
        left: list[Entry[Any]] = []
        room, now = self._most_bytes, time.monotonic()
        for entry in self._waiting:
            if min(entry.deadline, entry.wanted_until) <= now:
                entry.fail(ServiceUnavailable())
            elif self._is_hot(entry.key):
                self._start([entry], self._commit_alone(entry))
            elif len(batch) < self._most and entry.key not in batch and (not batch or entry.size <= room):
                batch[entry.key] = entry
                room -= entry.size
            else:
                left.append(entry)
        self._waiting = left
        return list(batch.values())

    async def _commit_batch(self, batch: list[Entry[Any]], tried: asyncio.Event) -> None:
        """Commits a batch until its entries are settled. Sets `tried` as soon as the next batch need not wait."""
        attempt = self._transactions.attempt(min(entry.deadline for entry in batch))
        try:
            stopped = await self._try_once(batch, attempt)
            tried.set()
            if stopped is not None:
                await self._split(batch, attempt, stopped)
        finally:
            tried.set()
            self._leave(attempt, batch)

    def _leave(self, attempt: Attempt, entries: Sequence[Entry[Any]]) -> None:
        """Ends the attempt. Entries whose commit was sent and has no known outcome get it in the background."""
        open_entries = [entry for entry in entries if not entry.has_result]
        if attempt.open is Obstacle.UNKNOWN:
            for entry in open_entries:
                entry.leave_unsettled()
        self._transactions.leave(attempt, *(entry.unsettled for entry in open_entries if entry.unsettled is not None))

    async def _try_once(self, batch: Sequence[Entry[Any]], attempt: Attempt) -> TransactionStopped | None:
        """Tries to commit the batch. Returns None if it is committed and all entries are settled."""
        try:
            await attempt.once(await self._transactions.writes(*(entry.transaction for entry in batch)))
        except TransactionStopped as stopped:
            return stopped
        except Exception:
            if len(batch) == 1:
                raise
            return TransactionStopped(Obstacle.MISS)  # one entry was refused: committed alone, each gets its own result
        for entry in batch:
            entry.settle(entry.transaction.result)
        return None

    async def _split(self, batch: list[Entry[Any]], attempt: Attempt, stopped: TransactionStopped | None) -> None:
        """Commits the entries that stopped a batch alone, and the rest of the batch again."""
        again = False
        while stopped is not None:
            if len(batch) == 1:
                self._heat(batch)
                result = await self._transactions.pursue(batch[0].transaction, attempt, met=stopped.obstacle)
                batch[0].settle(result)
                return
            if stopped.obstacle is Obstacle.UNKNOWN:
                for entry in batch:
                    entry.leave_unsettled()
                await asyncio.gather(*(_settle_unknown(entry, attempt) for entry in batch))
                return
            in_time = attempt.left() > 0  # after it each entry looks for its own outcome, at once
            leaving = await self._leaving(batch, attempt, stopped) if in_time else ()
            self._heat(leaving)
            if not leaving and (again or stopped.obstacle is Obstacle.MISS or not await attempt.pause(0)):
                leaving = list(batch)
            again = not leaving
            for entry in leaving:
                batch.remove(entry)
                self._start([entry], self._commit_alone(entry, met=Obstacle.CONFLICT, after=attempt))
            stopped = await self._try_once(batch, attempt) if batch else None

    async def _leaving(
        self, batch: Sequence[Entry[Any]], attempt: Attempt, stopped: TransactionStopped
    ) -> Sequence[Entry[Any]]:
        """Returns the entries that must leave the batch; none if neither of these was the cause.

        The one whose insert hit a duplicate key, or those whose head has changed.
        """
        if stopped.refused_writer is not None:
            return [entry for entry in batch if entry.transaction is stopped.refused_writer]
        try:
            unmoved = await attempt.look(partial(self._unmoved, batch), stopped.obstacle)
        except Exception:  # noqa: BLE001 - one whose filter cannot even be sent is found out when each is alone
            return []
        return [entry for entry in batch if entry.key not in unmoved]

    async def _unmoved(self, batch: Sequence[Entry[Any]], reader: ClientSession, _: Obstacle) -> Collection[SessionKey]:
        match = {**keys.where_sessions([entry.key for entry in batch]), "$or": [entry.head for entry in batch]}
        heads = self._transactions.connection.heads.find(match, {"_id": 1}, session=reader)
        existing = {keys.session_of(head["_id"]) async for head in heads}
        return {entry.key for entry in batch if (entry.key in existing) is not entry.creates}

    def _heat(self, entries: Iterable[Entry[Any]]) -> None:
        """Marks the heads of these entries as hot for HOT_S."""
        now = time.monotonic()
        self._hot = {key: until for key, until in self._hot.items() if until > now}
        self._hot |= {entry.key: now + HOT_S for entry in entries}

    def _is_hot(self, key: SessionKey) -> bool:
        return self._hot.get(key, 0.0) > time.monotonic()


def _fail_all(entries: Sequence[Entry[Any]], work: asyncio.Task[None]) -> None:
    """Fails the entries that the task left unsettled, also if it was cancelled before it began."""
    if work.cancelled():
        error: BaseException | None = ServiceUnavailable()
    else:
        error = work.exception()
    if isinstance(error, Exception):
        for entry in entries:
            entry.fail(error)


async def _settle_unknown(entry: Entry[Any], attempt: Attempt) -> None:
    """Settles an entry of a batch whose commit's outcome is unknown by what the database holds."""
    try:
        result = await attempt.look(entry.transaction.look, Obstacle.UNKNOWN)
    except Exception as error:  # noqa: BLE001 - this entry's caller gets it
        entry.fail(error)
        return
    if result is None:
        entry.fail(ServiceUnavailable())
    else:
        entry.settle(result)
