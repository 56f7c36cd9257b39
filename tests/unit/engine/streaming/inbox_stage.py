"""An inbox on a store in memory, for the tests of its watchers."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self

from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import an_approval, an_event
from tests.contracts.stores import a_changeset, begin, committed, head_of
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from turnkeeper.domain.approval import Approval
from turnkeeper.engine.streaming.approval_watcher import ApprovalBatch, ApprovalWatcher
from turnkeeper.engine.streaming.inbox import Inbox
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import ApprovalChange
from turnkeeper.store.notifications import ApprovalNotification
from turnkeeper.telemetry.metrics import Metrics

TIMEOUT = 5.0


class CountedMetrics(Metrics):
    """Metrics that keep the resets."""

    def __init__(self) -> None:
        super().__init__(NoOpMeterProvider())
        self.resets: list[str] = []

    def inbox_reset(self, reason: str) -> None:
        self.resets.append(reason)


@dataclass
class Stage:
    """An inbox on a store in memory, whose change stream is a task of the test."""

    keep_alive: float = 60.0
    rotation: float = 600.0
    calls: list[str] = field(default_factory=list)
    """The methods of the store that were called."""
    at_read: Callable[[], Any] | None = None
    """Called once when the next page of a snapshot was read, before the watcher has it."""
    unavailable: bool = False

    async def __aenter__(self) -> Self:
        async def enter(method: str) -> None:
            self.calls.append(method)
            if self.unavailable and method == "approvals_by_id":
                raise ServiceUnavailable

        database = MemoryDatabase(now=lambda: datetime.now(UTC))
        self.store = MemoryStore(database, codec=WireCodec(), enter=enter, random=random.Random(1))
        self._read_page, self.store.approvals = self.store.approvals, self._approvals  # type: ignore[method-assign]
        self.metrics = CountedMetrics()
        times = StreamTimes(keep_alive=self.keep_alive, rotation=self.rotation)
        encodes: list[str] = []

        async def encode(approval: Approval) -> bytes:
            encodes.append(approval.id)
            return f"{approval.id} {approval.state.value}".encode()

        self.encodes = encodes
        self.inbox = Inbox(self.store, encode, metrics=self.metrics, times=times, rng=random.Random(1))
        self.key = await begin(self.store)
        self._tasks = [asyncio.create_task(self.inbox.run())]
        self._listening: asyncio.Task[None] | None = None
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (*self._tasks, *([self._listening] if self._listening else [])):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def listen(self) -> None:
        """Opens the change stream."""
        opened = asyncio.Event()

        async def run() -> None:
            async with self.store.notifications() as notifications:
                self.inbox.begin_anew()
                opened.set()
                async for notification in notifications:
                    if isinstance(notification, ApprovalNotification):
                        self.inbox.notify(notification.tenant, notification.approval_id)

        self._listening = asyncio.create_task(run())
        await opened.wait()

    async def lose_stream(self) -> None:
        """Breaks the change stream."""
        assert self._listening is not None
        self._listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listening
        self._listening = None
        self.inbox.lost()

    async def request(self, approval_id: str, **given: Any) -> Approval:
        """Stores a new approval."""
        approval = an_approval(self.key, id=approval_id, **given)
        await committed(
            self.store.commit(a_changeset(await head_of(self.store, self.key), an_event(), new_approvals=(approval,)))
        )
        await settled(self)
        return approval

    async def change(self, approval: Approval, **given: Any) -> None:
        """Stores a change of a PENDING approval."""
        change = ApprovalChange(approval=replace(approval, **given), lapsed=None)
        await committed(
            self.store.commit(a_changeset(await head_of(self.store, self.key), an_event(), approvals=(change,)))
        )

    async def _approvals(self, *args: Any, **kwargs: Any) -> Any:
        page = await self._read_page(*args, **kwargs)
        if self.at_read is not None:
            at_read, self.at_read = self.at_read, None
            await at_read()
        return page


async def next_of(watcher: ApprovalWatcher) -> ApprovalBatch:
    return await asyncio.wait_for(watcher.next(), TIMEOUT)


async def following(watcher: ApprovalWatcher) -> list[str]:
    """Returns what the next response has; `- ` stands before what no longer matches."""
    batch = await next_of(watcher)
    return [wire.decode() for wire in batch.approvals] + [f"- {wire.decode()}" for wire in batch.gone]


async def caught_up(watcher: ApprovalWatcher) -> list[str]:
    """Returns what the snapshot has."""
    snapshot: list[str] = []
    while True:
        batch = await next_of(watcher)
        snapshot += [wire.decode() for wire in batch.approvals]
        if batch.caught_up:
            return snapshot


async def settled(stage: Stage) -> None:
    """Waits until the inbox has read all that was notified."""
    for _ in range(20):
        await asyncio.sleep(0)
