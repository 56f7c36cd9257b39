"""Blocks in which reads are linearizable: what they show, what they cost, and what comes without a majority."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from tests.builders import a_call, a_request, a_turn, an_approval, an_event
from tests.contracts.stores import a_changeset, begin, committed, head_of
from tests.integration.mongo.commands import Command, Recorder, name_of
from tests.integration.mongo.conftest import FailPoint, NewStore
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.filters import ApprovalFilter, SessionFilter
from turnkeeper.store.mongo import consistent_reads
from turnkeeper.store.mongo.store import MongoStore

READS = ("find", "aggregate")
ABSENT = SessionKey("default", "absent")
Calls = Mapping[str, Callable[[], Awaitable[object]]]


def _reads(store: MongoStore, key: SessionKey) -> Calls:
    """Returns every read that a refusal may rest on."""
    tenant, request = key.tenant, a_request(key).key
    return {
        "snapshot": lambda: store.snapshot(key, request=request),
        "session": lambda: store.session(key),
        "sessions": lambda: store.sessions(tenant, SessionFilter(), limit=5, after=None),
        "turn": lambda: store.turn(key, "turn"),
        "turns": lambda: store.turns(key, states=(), limit=5, before=None),
        "call": lambda: store.call(key, "call"),
        "approval": lambda: store.approval(tenant, "approval"),
        "approvals": lambda: store.approvals(tenant, ApprovalFilter(), limit=5, after=None),
        "agent": lambda: store.agent(tenant, "name", "version"),
        "find_request": lambda: store.find_request(request),
        "events": lambda: store.events(key, after=0, limit=5),
        "last_seqs": lambda: store.last_seqs([key]),
    }


async def _full(store: MongoStore) -> SessionKey:
    """Stores a session with one document of each kind."""
    key = await begin(store)
    changeset = a_changeset(
        await head_of(store, key),
        an_event(),
        new_turns=(a_turn(key, id="turn"),),
        new_calls=(a_call(key, id="call", turn_id="turn"),),
        new_approvals=(an_approval(key, id="approval", turn_id="turn"),),
        request=a_request(key),
    )
    await committed(store.commit(changeset))
    return key


def _concerns(commands: list[Command]) -> list[dict[str, Any]]:
    return [command["readConcern"] for command in commands if name_of(command) in READS]


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "absent"])
async def test_each_read_of_a_block_waits_for_what_a_linearizable_read_has_shown(
    store: MongoStore, recorder: Recorder, stored: bool
) -> None:
    key = await _full(store) if stored else ABSENT
    for name, call in _reads(store, key).items():
        plain = await call()
        with recorder.recording() as commands:
            async with store.linearizable():
                certain = await call()
        first, *others = _concerns(commands)
        assert first == {"level": "linearizable"}, name
        assert others, name
        assert all(concern["level"] == "majority" for concern in others), name
        assert all("afterClusterTime" in concern for concern in others), name
        assert _timeless(certain) == _timeless(plain), name


def _timeless(value: object) -> str:
    """Returns the value without the database's clock, which goes on between two reads."""
    text = repr(value)
    return "".join(part.partition(")")[2] for part in text.split("now=datetime.datetime(")) if "now=" in text else text


async def test_the_time_of_a_block_is_not_behind_a_write_that_was_acknowledged_before(
    store: MongoStore, recorder: Recorder
) -> None:
    key = await _full(store)
    with recorder.recording() as commands:
        async with store.linearizable():
            await store.session(key)
        await committed(store.commit(a_changeset(await head_of(store, key), an_event())))
        async with store.linearizable():
            await store.session(key)
    times = [concern["afterClusterTime"] for concern in _concerns(commands) if "afterClusterTime" in concern]
    assert times[-1] > times[0]


async def test_a_task_that_was_started_in_the_block_reads_as_before_once_the_block_has_ended(
    store: MongoStore, recorder: Recorder
) -> None:
    """A turn that a call starts goes on for minutes after the call."""
    ended = asyncio.Event()

    async def read_after_the_end() -> None:
        await ended.wait()
        async with store.linearizable():
            await store.session(ABSENT)

    async with store.linearizable():
        task = asyncio.create_task(read_after_the_end())
        await asyncio.sleep(0)
    with recorder.recording() as commands:
        ended.set()
        await task
    assert [concern["level"] for concern in _concerns(commands)] == ["linearizable", "majority"]


async def test_a_block_inside_a_block_needs_no_further_linearizable_read(store: MongoStore, recorder: Recorder) -> None:
    with recorder.recording() as commands:
        async with store.linearizable(), store.linearizable():
            await store.session(ABSENT)
    assert [concern["level"] for concern in _concerns(commands)] == ["linearizable", "majority"]


async def test_a_task_that_was_started_in_a_block_has_blocks_of_its_own(store: MongoStore, recorder: Recorder) -> None:
    """A turn that a repeated call has started runs on in it, and asks later whether it has lost its lease."""

    async def later() -> None:
        async with store.linearizable():
            pass

    async with store.linearizable():
        with recorder.recording() as commands:
            await asyncio.create_task(later())
    assert [command for command in commands if command.get("readConcern", {}).get("level") == "linearizable"]


async def test_a_linearizable_read_does_not_wait_for_the_regular_flush(store: MongoStore) -> None:
    """An idle single node flushes its journal every 100 ms; each read would wait for that."""
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        async with store.linearizable():
            assert await store.session(ABSENT) is None
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05
    assert sorted(seconds)[len(seconds) // 2] < 0.09


async def test_a_flood_of_refusals_shares_linearizable_reads(store: MongoStore, recorder: Recorder) -> None:
    """Whatever callers ask for, the database gets one such read at a time, and a pause between two."""

    async def look() -> None:
        for _ in range(3):
            async with store.linearizable():
                await store.session(ABSENT)

    with recorder.recording() as commands:
        await asyncio.gather(*(look() for _ in range(100)))
    levels = [concern["level"] for concern in _concerns(commands)]
    assert levels.count("majority") == 300
    assert levels.count("linearizable") <= 30


async def test_without_an_answer_each_caller_is_refused_in_time(
    new_store: NewStore, failing: FailPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a majority a linearizable read takes all its time: callers that came later do not wait for two."""
    monkeypatch.setattr(consistent_reads, "CONFIRM_S", 0.5)
    store = await new_store()

    async def look(after: float) -> float:
        await asyncio.sleep(after)
        began = time.perf_counter()
        with pytest.raises(ServiceUnavailable):
            async with store.linearizable():
                raise AssertionError("nothing was confirmed")
        return time.perf_counter() - began

    async with failing(["find"], blockConnection=True, blockTimeMS=3_000):
        seconds = await asyncio.gather(*(look(0.1 * number) for number in range(4)))
    assert max(seconds) < 1.0


async def test_a_flush_that_fails_does_no_harm(store: MongoStore, failing: FailPoint) -> None:
    async with failing(["update"], errorCode=13), store.linearizable():
        assert await store.session(ABSENT) is None
