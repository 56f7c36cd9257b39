"""What the inbox costs the database: 2,000 watchers of approvals cost what one costs."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import an_approval, an_event
from tests.contracts.stores import a_changeset, begin, committed, head_of
from tests.integration.mongo.commands import Command, Recorder, name_of
from tests.integration.mongo.conftest import NewStore
from tests.processes import until
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.engine.streaming.approval_watcher import ApprovalWatcher
from turnkeeper.engine.streaming.inbox import Inbox
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.rpc.views import encoded_for_watchers
from turnkeeper.store.changeset import ApprovalChange
from turnkeeper.store.filters import ApprovalFilter
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.store.notifications import ApprovalNotification
from turnkeeper.telemetry.metrics import Metrics

CHANGES = 5
PENDING = ApprovalFilter(states=(ApprovalState.PENDING,))


@contextlib.asynccontextmanager
async def inbox_on(store: MongoStore) -> AsyncIterator[Inbox]:
    """Yields an inbox that the store's change stream feeds."""
    times = StreamTimes(keep_alive=60, rotation=600)
    inbox = Inbox(store, encoded_for_watchers, metrics=Metrics(NoOpMeterProvider()), times=times, rng=random.Random(1))
    opened = asyncio.Event()

    async def listen() -> None:
        async with store.notifications() as notifications:
            inbox.begin_anew()
            opened.set()
            async for notification in notifications:
                if isinstance(notification, ApprovalNotification):
                    inbox.notify(notification.tenant, notification.approval_id)

    tasks = [asyncio.create_task(run) for run in (listen(), inbox.run())]
    try:
        await opened.wait()
        yield inbox
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _follow(watcher: ApprovalWatcher) -> None:
    """Reads until each change has come: its request, and that it was decided."""
    left = 2 * CHANGES
    while left:
        batch = await watcher.next()
        left -= len(batch.approvals) + len(batch.gone)


async def _cost(new_store: NewStore, recorder: Recorder, *, watchers: int) -> Counter[str]:
    """Returns the commands of CHANGES approvals, each requested and decided, that so many watchers see."""
    reading, writing = await new_store(), await new_store()
    key = await begin(writing)
    async with inbox_on(reading) as inbox:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(inbox.watch(key.tenant, PENDING)) for _ in range(watchers)]
            for watcher in opened:
                assert (await watcher.next()).caught_up
            with recorder.recording() as commands:
                following = [asyncio.create_task(_follow(watcher)) for watcher in opened]
                for _ in range(CHANGES):
                    approval = an_approval(key)
                    requested = a_changeset(await head_of(writing, key), an_event(), new_approvals=(approval,))
                    await committed(writing.commit(requested))
                    await until(lambda: all(_known_to(opened)))
                    change = ApprovalChange(approval=replace(approval, state=ApprovalState.EXPIRED), lapsed=None)
                    await committed(
                        writing.commit(a_changeset(await head_of(writing, key), an_event(), approvals=(change,)))
                    )
                    await until(lambda: not any(_known_to(opened)))
                async with asyncio.timeout(30):
                    await asyncio.gather(*following)
    return Counter(_reads(commands))


def _known_to(watchers: list[ApprovalWatcher]) -> list[set[str]]:
    """Returns the approvals that each watcher was given. Of two changes at a time, both are in one read."""
    return [watcher._known for watcher in watchers]  # noqa: SLF001


def _reads(commands: list[Command]) -> list[str]:
    """Returns the reads of approvals among these commands."""
    return [name_of(command) for command in commands if command.get(name_of(command)) == "approvals"]


@pytest.mark.timeout(120)
async def test_2000_watchers_cost_the_database_what_one_costs(new_store: NewStore, recorder: Recorder) -> None:
    one = await _cost(new_store, recorder, watchers=1)
    many = await _cost(new_store, recorder, watchers=2_000)
    assert one["find"] == 2 * CHANGES, "each change is read once"
    assert many["find"] == one["find"]
    assert many["aggregate"] == one["aggregate"] == 0, "no snapshot is read again"
