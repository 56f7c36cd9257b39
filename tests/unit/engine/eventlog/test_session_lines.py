"""Callers of one session stand in line: one stores at a time, in order, and the owner of the turn goes first."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import new_id
from tests.contracts.stores import a_changeset, begin, committed, head_of, make_due
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from tests.processes import until
from turnkeeper.admission.gate import CURRENT, Gate, Kind
from turnkeeper.admission.load import Load
from turnkeeper.domain.event import SessionUpdated
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import CancelReason, TurnState
from turnkeeper.engine.eventlog import session_lines
from turnkeeper.engine.eventlog.lease import HeldLeases
from turnkeeper.engine.eventlog.session_cache import SessionCache
from turnkeeper.engine.eventlog.session_lines import MOST_CALLERS, Place, SessionLines
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.errors import Overloaded, ServiceUnavailable, SessionContended
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import Snapshot
from turnkeeper.telemetry.metrics import Metrics

KEY = SessionKey("default", "session")
CODEC = WireCodec()


class TornStore(MemoryStore):
    """A store in memory, some of whose readings have a turn that ended after their head was read."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.torn: list[TurnState] = []
        """How the turn ended in the next readings."""

    async def snapshot(self, key: SessionKey, **given: Any) -> Snapshot | None:
        whole = await super().snapshot(key, **given)
        if not self.torn or whole is None or whole.turn is None:
            return whole
        return replace(whole, turn=replace(whole.turn, state=self.torn.pop()))


class Replica:
    """A log writer on a store in memory. Its commits wait while `go_on` is not set."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.calls: list[str] = []
        """The methods of the store that were called."""
        self.before_commit: Callable[[], None] = lambda: None
        self.at_database = self.most_at_database = 0
        """Callers that read or store the session now, and that did at most."""
        self.database = MemoryDatabase(now=lambda: datetime.now(UTC))
        self.store = TornStore(self.database, codec=CODEC, enter=self._enter, random=Random(0))
        metrics = Metrics(NoOpMeterProvider())
        self.writer = LogWriter(
            self.store,
            Feeds(self.store, poll=1),
            metrics,
            session_cache=SessionCache(self.store, decode=CODEC.decode),
            held_leases=HeldLeases(),
            sources=Sources(now=lambda: datetime.now(UTC), new_id=lambda: new_id("id"), jitter=lambda: 0.0),
        )

    @classmethod
    async def with_session(cls) -> "Replica":
        replica = cls()
        await begin(replica.store, KEY)
        replica.calls.clear()
        return replica

    async def _enter(self, method: str) -> None:
        await asyncio.sleep(0)
        self.calls.append(method)
        self.at_database += 1
        self.most_at_database = max(self.most_at_database, self.at_database)
        await asyncio.sleep(0)
        if method == "commit":
            self.before_commit()
            await self.go_on.wait()
        self.at_database -= 1

    @property
    def commits(self) -> int:
        return self.calls.count("commit")

    @property
    def titles(self) -> list[str]:
        """What callers changed, in the order of the log."""
        payloads = [CODEC.decode(event.stored).payload for event in self.database.sessions[KEY].log]
        return [payload.fields[0] for payload in payloads if isinstance(payload, SessionUpdated)]

    def change(self, title: str) -> "asyncio.Task[object]":
        """A caller changes the session."""
        return asyncio.create_task(self.writer.append(KEY, lambda uow: change(uow, title)))


def change(uow: UnitOfWork, title: str) -> str:
    """Appends an event that tells changes apart."""
    uow.append(SessionUpdated(fields=(title,)))
    return title


async def test_callers_of_one_session_store_one_after_the_other_in_the_order_in_which_they_came() -> None:
    replica = await Replica.with_session()
    titles = [str(number) for number in range(50)]
    await asyncio.gather(*(replica.change(title) for title in titles))
    assert replica.commits == len(titles), "no commit was in vain"
    assert replica.titles == titles
    assert not len(replica.writer.lines)


async def test_callers_of_another_session_do_not_wait() -> None:
    replica = await Replica.with_session()
    lines = replica.writer.lines
    with await lines.enter(KEY):
        async with asyncio.timeout(10):
            (await lines.enter(SessionKey("default", "another"))).leave()


async def test_a_caller_that_leaves_gives_up_its_place() -> None:
    replica = await Replica.with_session()
    replica.go_on.clear()
    first, second, third = (replica.change(title) for title in ("first", "second", "third"))
    await until(lambda: replica.commits == 1)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    replica.go_on.set()
    await asyncio.gather(first, third)
    assert replica.titles == ["first", "third"]
    assert not len(replica.writer.lines)


async def test_no_caller_begins_to_store_while_the_owner_of_the_turn_does() -> None:
    replica = await Replica.with_session()
    with replica.writer.lines.owner_writes(KEY):
        waiting = replica.change("later")
        for _ in range(100):
            await asyncio.sleep(0)
        assert not replica.calls
    await waiting
    assert replica.titles == ["later"]


async def test_the_owner_waits_for_no_caller() -> None:
    replica = await Replica.with_session()
    with await replica.writer.lines.enter(KEY), replica.writer.lines.owner_writes(KEY):
        pass


async def test_a_caller_lets_an_owner_that_hangs_first_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_lines, "OWNER_FIRST_S", 0.01)
    replica = await Replica.with_session()
    with replica.writer.lines.owner_writes(KEY):
        await replica.change("meanwhile")
    assert replica.titles == ["meanwhile"]


async def test_a_caller_of_a_full_line_is_refused_at_once_and_told_when_to_come_again() -> None:
    lines = SessionLines(lambda: 0.5)
    async with asyncio.timeout(10):
        with await lines.enter(KEY):
            waiting = [asyncio.create_task(lines.enter(KEY)) for _ in range(MOST_CALLERS - 1)]
            await asyncio.sleep(0)
            with pytest.raises(SessionContended) as refusal:
                await lines.enter(KEY)
            assert refusal.value.retry_after == session_lines.RETRY_AFTER
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    assert not len(lines)


async def test_a_caller_stands_in_line_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_lines, "PATIENCE_S", 0.01)
    lines = SessionLines(lambda: 0.5)
    with await lines.enter(KEY), pytest.raises(SessionContended):
        await lines.enter(KEY)
    assert not len(lines)


async def test_a_commit_without_a_result_lets_the_next_caller_go_on() -> None:
    replica = await Replica.with_session()

    def fail_once() -> None:
        replica.before_commit = lambda: None
        raise ServiceUnavailable

    replica.before_commit = fail_once
    first, second = await asyncio.gather(replica.change("lost"), replica.change("stored"), return_exceptions=True)
    assert isinstance(first, ServiceUnavailable)
    assert isinstance(second, Stored)
    assert replica.titles == ["stored"]


async def test_a_caller_that_others_always_outrun_gets_contended() -> None:
    """The others are on other replicas: they stand in no line with it."""
    replica = await Replica.with_session()
    other = MemoryStore(replica.database, codec=CODEC, enter=_at_once, random=Random(0))

    async def outrun(uow_made: asyncio.Event) -> None:
        while True:
            await uow_made.wait()
            uow_made.clear()
            await committed(other.commit(a_changeset(await head_of(other, KEY))))

    decided = asyncio.Event()
    outrunning = asyncio.create_task(outrun(decided))

    def decide(uow: UnitOfWork) -> str:
        decided.set()
        return change(uow, "never")

    with pytest.raises(SessionContended) as refusal:
        await replica.writer.append(KEY, decide)
    outrunning.cancel()
    with suppress(asyncio.CancelledError):
        await outrunning
    assert refusal.value.retry_after
    assert not replica.titles


async def test_a_caller_in_line_takes_nothing_from_others_and_is_dropped_after_its_deadline() -> None:
    lines = SessionLines(lambda: 0.5)
    gate = Gate(Load(), timedelta(seconds=30), jitter=lambda: 0.5, recorder=Metrics(NoOpMeterProvider()))
    admitted = gate.admit(Kind.DECISION)
    place = await lines.enter(KEY)
    CURRENT.set(admitted)
    waiting = asyncio.create_task(lines.enter(KEY))
    await asyncio.sleep(0)
    assert (gate.at_work, gate.waiting) == (0, 1)
    admitted.wanted_until = 0.0
    place.leave()
    with pytest.raises(SessionContended):
        await waiting
    assert not len(lines)


@pytest.mark.parametrize("is_full", [False, True])
async def test_a_caller_whose_turn_has_come_is_at_work_if_there_is_room(is_full: bool) -> None:
    lines, load = SessionLines(lambda: 0.5), Load()
    load.limit.calls = 1.0
    gate = Gate(load, timedelta(seconds=30), jitter=lambda: 0.5, recorder=Metrics(NoOpMeterProvider()))
    place = await lines.enter(KEY)
    CURRENT.set(gate.admit(Kind.MESSAGE))
    waiting = asyncio.create_task(lines.enter(KEY))
    await asyncio.sleep(0)
    if is_full:
        gate.admit(Kind.MESSAGE)
    place.leave()
    if is_full:
        with pytest.raises(Overloaded):
            await waiting
    else:
        (await waiting).leave()
    assert (gate.at_work, gate.waiting) == (1, int(is_full))
    assert not len(lines)


async def test_a_place_is_left_once() -> None:
    lines = SessionLines(lambda: 0.5)
    place = await lines.enter(KEY)
    place.leave()
    second: Place = await lines.enter(KEY)
    place.leave()
    assert lines.is_busy(KEY)
    second.leave()
    assert not lines.is_busy(KEY)


async def _at_once(_: str) -> None:
    pass


def interrupt(uow: UnitOfWork) -> None:
    uow.cancel_turn(uow.turn, reason=CancelReason.INTERRUPTED, by="ada")
    uow.change_head(active_turn="")


@pytest.mark.parametrize(
    "decide",
    [
        interrupt,
        lambda uow: session_rules.end(uow, {}, by="ada", reason=""),
        lambda uow: session_rules.delete(uow, {}, by="ada", etag=""),
    ],
    ids=["interrupt", "end", "delete"],
)
async def test_a_reading_whose_active_turn_ended_behind_its_head_is_made_again(
    decide: Callable[[UnitOfWork], object],
) -> None:
    """No decision ends a turn twice: a query reads the head first, and the turn as it is a moment later."""
    replica = await Replica.with_session()
    turn = await make_due(replica.store, KEY)
    replica.store.torn += [TurnState.CANCELLED, TurnState.COMPLETED]
    states = list[TurnState]()

    def decide_once(uow: UnitOfWork) -> None:
        states.append(uow.turn.state)
        decide(uow)

    await replica.writer.append(KEY, decide_once)
    ended = await replica.store.turn(KEY, turn.id)
    assert ended is not None
    assert (states, ended.state, replica.store.torn) == ([turn.state], TurnState.CANCELLED, [])
