"""The inbox: subscribe, snapshot, changes. Nothing is missed, whatever happens while the snapshot is read."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Self

import pytest

from tests.builders import NOON, a_session_key
from tests.contracts.stores import begin
from tests.unit.engine.streaming.inbox_stage import TIMEOUT, Stage, caught_up, following, next_of, settled
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.engine.streaming import approval_watcher
from turnkeeper.engine.streaming.approval_watcher import MOST_KEPT, PAGE, ApprovalBatch, ApprovalWatcher
from turnkeeper.errors import ServerDraining, StreamRotated
from turnkeeper.store.filters import ApprovalFilter

PENDING = ApprovalFilter(states=(ApprovalState.PENDING,))


class SnapshotsFirst(ApprovalWatcher):
    """A broken watcher: it reads the snapshot, then subscribes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(KeyError):
            super().__exit__(*error)

    async def next(self) -> ApprovalBatch:
        batch = await super().next()
        if batch.caught_up:
            super().__enter__()
        return batch


async def changed_during_the_snapshot(stage: Stage, watcher_class: type[ApprovalWatcher]) -> list[str]:
    """Requests one approval and decides another when the snapshot was read. Returns what a watcher then has open."""
    first = await stage.request("first")

    async def change() -> None:
        await stage.request("second")
        await stage.change(first, state=ApprovalState.APPROVED)
        await settled(stage)

    stage.at_read = change
    with watcher_class(stage.inbox, "default", PENDING, ends_at=math.inf) as watcher:
        states = dict(entry.split() for entry in await caught_up(watcher))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while states != {"first": "APPROVED", "second": "PENDING"}:
                    batch = await watcher.next()
                    states |= dict(wire.decode().split() for wire in (*batch.approvals, *batch.gone))
    return [name for name, state in states.items() if state == "PENDING"]


async def test_what_changes_while_the_snapshot_is_read_is_not_missed() -> None:
    async with Stage() as stage:
        assert await changed_during_the_snapshot(stage, ApprovalWatcher) == ["second"]


async def test_a_watcher_that_snapshots_before_it_subscribes_is_caught() -> None:
    """The test above sees that fault."""
    async with Stage() as stage:
        assert await changed_during_the_snapshot(stage, SnapshotsFirst) != ["second"]


async def test_an_approval_that_no_longer_matches_is_sent_once_more() -> None:
    async with Stage() as stage:
        old, other = await stage.request("old"), await stage.request("other", tool="mail")
        where = replace(PENDING, tool="search_web")
        with stage.inbox.watch("default", where) as watcher:
            assert await caught_up(watcher) == ["old PENDING"]
            await stage.change(other, state=ApprovalState.REJECTED)
            await stage.change(old, arguments_hash=old.arguments_hash, late_result_json="1")
            assert await following(watcher) == ["old PENDING"]
            await stage.change(old, state=ApprovalState.REJECTED)
            assert await following(watcher) == ["- old REJECTED"]
            new = await stage.request("new")
            assert await following(watcher) == ["new PENDING"]
            await stage.change(new, state=ApprovalState.EXPIRED)
            assert await following(watcher) == ["- new EXPIRED"]
            stage.inbox.notify("default", "old")
            await stage.request("last")
            assert await following(watcher) == ["last PENDING"], "what has left is not sent again"


async def test_an_approval_leaves_and_enters_a_filter_of_expiry() -> None:
    async with Stage() as stage:
        soon = await stage.request("soon", expire_time=NOON)
        with stage.inbox.watch("default", replace(PENDING, expire_before=NOON + timedelta(hours=1))) as watcher:
            assert await caught_up(watcher) == ["soon PENDING"]
            await stage.change(soon, expire_time=NOON + timedelta(hours=2))
            assert await following(watcher) == ["- soon PENDING"]
            await stage.change(soon, expire_time=NOON + timedelta(hours=3))
            await stage.change(soon, expire_time=NOON)
            assert await following(watcher) == ["soon PENDING"]


async def test_the_snapshot_comes_in_pages_oldest_first() -> None:
    async with Stage() as stage:
        names = [f"a{number:03}" for number in range(2 * PAGE + 1)]
        for name in names:
            await stage.request(name)
        with stage.inbox.watch("default", PENDING) as watcher:
            pages = [await following(watcher) for _ in range(3)]
        assert [len(page) for page in pages] == [PAGE, PAGE, 1]
        assert [entry.split()[0] for page in pages for entry in page] == names


async def test_a_page_of_large_approvals_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approval_watcher, "BATCH_BYTES", 25)
    async with Stage() as stage:
        for name in "abcde":
            await stage.request(name)
        with stage.inbox.watch("default", PENDING) as watcher:
            assert await following(watcher) == ["a PENDING", "b PENDING"]
            assert await caught_up(watcher) == ["c PENDING", "d PENDING", "e PENDING"]


async def test_other_tenants_are_not_seen() -> None:
    async with Stage() as stage:
        with stage.inbox.watch("default", PENDING) as watcher, stage.inbox.watch("globex", PENDING) as foreign:
            assert await caught_up(watcher) == await caught_up(foreign) == []
            await stage.request("mine")
            assert await following(watcher) == ["mine PENDING"]
            key, stage.key = stage.key, await begin(stage.store, a_session_key(tenant="globex"))
            await stage.request("theirs")
            assert await following(foreign) == ["theirs PENDING"], "and nothing before"
            stage.key = key
            await stage.request("another")
            assert await following(watcher) == ["another PENDING"]


async def test_a_lost_change_stream_begins_anew() -> None:
    async with Stage() as stage:
        first = await stage.request("first")
        with stage.inbox.watch("default", PENDING) as watcher:
            assert await caught_up(watcher) == ["first PENDING"]
            await stage.lose_stream()
            await stage.change(first, state=ApprovalState.APPROVED)
            stage.store._position = None  # noqa: SLF001 - the database no longer has the place where the stream ended
            await stage.request("second")
            stage.store._position = None  # noqa: SLF001
            await stage.listen()
            batch = await next_of(watcher)
            assert (batch.reset, batch.caught_up, batch.approvals) == (True, True, [b"second PENDING"])
            assert stage.metrics.resets == ["STREAM_LOST"]


async def test_a_watcher_that_begins_without_a_change_stream_waits_for_it() -> None:
    async with Stage(keep_alive=0.01) as stage:
        await stage.lose_stream()
        with stage.inbox.watch("default", PENDING) as watcher:
            assert (await next_of(watcher)) == ApprovalBatch()
            await stage.request("first")
            await stage.listen()
            batch = await next_of(watcher)
            while batch == ApprovalBatch():
                batch = await next_of(watcher)
            assert batch == ApprovalBatch([b"first PENDING"], caught_up=True), "there is nothing to forget"


async def test_changes_that_cannot_be_read_begin_anew() -> None:
    async with Stage() as stage:
        with stage.inbox.watch("default", PENDING) as watcher:
            await caught_up(watcher)
            stage.unavailable = True
            await stage.request("first")
            batch = await next_of(watcher)
            assert (batch.reset, batch.approvals, stage.metrics.resets) == (True, [b"first PENDING"], ["NOT_READ"])


async def test_a_reader_that_is_too_slow_begins_anew_and_holds_no_more_than_it_may() -> None:
    async with Stage() as stage:
        with stage.inbox.watch("default", PENDING) as watcher:
            await caught_up(watcher)
            for number in range(MOST_KEPT + 1):
                await stage.request(f"a{number:04}")
            await settled(stage)
            batch = await next_of(watcher)
            assert (batch.reset, len(batch.approvals), stage.metrics.resets) == (True, PAGE, ["SLOW_READER"])
            assert len(await caught_up(watcher)) == MOST_KEPT + 1 - PAGE


async def test_changes_of_one_approval_are_sent_as_its_newest_state() -> None:
    async with Stage() as stage:
        approval = await stage.request("one")
        with stage.inbox.watch("default", PENDING) as watcher:
            await caught_up(watcher)
            for late in "123":
                await stage.change(approval, late_result_json=late)
            await stage.change(approval, state=ApprovalState.EXPIRED)
            await settled(stage)
            assert await following(watcher) == ["- one EXPIRED"]


async def test_a_change_is_read_and_encoded_once_for_all_watchers() -> None:
    async with Stage() as stage, watching(stage, 200) as watchers:
        stage.calls.clear()
        stage.encodes.clear()
        await stage.request("one")
        for watcher in watchers:
            assert await following(watcher) == ["one PENDING"]
        assert stage.calls.count("approvals_by_id") == 1
        assert "approvals" not in stage.calls
        assert stage.encodes == ["one"]


async def test_nothing_is_read_for_a_tenant_without_watchers() -> None:
    async with Stage() as stage:
        await stage.request("one")
        await settled(stage)
        assert "approvals_by_id" not in stage.calls


async def test_silence_is_broken_by_heartbeats() -> None:
    async with Stage(keep_alive=0.01) as stage:
        with stage.inbox.watch("default", PENDING) as watcher:
            await caught_up(watcher)
            assert [await next_of(watcher) for _ in range(2)] == [ApprovalBatch(), ApprovalBatch()]


async def test_a_stream_ends_at_its_age_and_when_the_replica_drains() -> None:
    async with Stage(rotation=0.05) as stage:
        with stage.inbox.watch("default", PENDING) as watcher:
            await caught_up(watcher)
            with pytest.raises(StreamRotated):
                await next_of(watcher)
    async with Stage() as stage, watching(stage, 2) as watchers:
        waiting = [asyncio.create_task(watcher.next()) for watcher in watchers]
        await settled(stage)
        stage.inbox.drain()
        for task in waiting:
            with pytest.raises(ServerDraining):
                await asyncio.wait_for(task, TIMEOUT)


async def test_a_watcher_that_leaves_leaves_nothing() -> None:
    async with Stage() as stage:
        for number in range(3):
            await stage.request(f"a{number}")
        with stage.inbox.watch("default", PENDING) as watcher:
            await caught_up(watcher)
            assert stage.inbox.memory.used > 0
            leaving = asyncio.create_task(watcher.next())
            await settled(stage)
            leaving.cancel()
            await asyncio.wait([leaving])
        assert stage.inbox.memory.used == 0
        assert not stage.inbox._watchers  # noqa: SLF001


@contextlib.asynccontextmanager
async def watching(stage: Stage, count: int) -> AsyncIterator[list[ApprovalWatcher]]:
    """Yields watchers that have caught up."""
    with contextlib.ExitStack() as stack:
        watchers = [stack.enter_context(stage.inbox.watch("default", PENDING)) for _ in range(count)]
        for watcher in watchers:
            await caught_up(watcher)
        yield watchers
