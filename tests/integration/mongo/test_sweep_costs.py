"""What sweeps ask of a database in which nothing happens."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import a_turn, an_event
from tests.contracts.stores import a_changeset, begin, committed, head_of
from tests.integration.mongo.commands import Recorder, name_of
from tests.processes import until
from turnkeeper.engine.replica.schedule import JitteredInterval
from turnkeeper.engine.replica.sweeper import SWEEPS_A_RESCUE, Sweeper
from turnkeeper.store.changeset import HeadChange
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.telemetry.metrics import Metrics

LEASE = timedelta(seconds=30)


async def test_most_sweeps_look_for_silent_replicas_and_lapsed_leases_alone(
    store: MongoStore, recorder: Recorder
) -> None:
    sweeper = Sweeper(
        store,
        metrics=Metrics(NoOpMeterProvider()),
        notify_worker=lambda: None,
        interval=JitteredInterval(0.001, lambda: 0.5),
        lapsed_by=lambda: datetime.now(UTC),
    )
    with recorder.recording() as commands:
        task = asyncio.create_task(sweeper.run())
        await until(lambda: sum("replicas" in command.values() for command in commands) > SWEEPS_A_RESCUE)
        task.cancel()
        await asyncio.wait([task])
    sweeps = [number for number, command in enumerate(commands) if command.get("find") == "replicas"]
    costs = [end - start for start, end in pairwise(sweeps)]
    assert costs[:SWEEPS_A_RESCUE] == [7, 2, 2, 2, 2], commands


async def test_a_purge_where_nothing_is_due_is_one_read(store: MongoStore, recorder: Recorder) -> None:
    await begin(store)
    with recorder.recording() as commands:
        assert [gone async for gone in store.purge(after=timedelta())] == []
    assert [name_of(command) for command in commands] == ["find"]


async def test_a_look_for_turns_where_none_waits_is_one_short_read(store: MongoStore, recorder: Recorder) -> None:
    with recorder.recording() as commands:
        assert await store.claim("r2", lease=LEASE) is None
    assert [(name_of(command), command.get("limit")) for command in commands] == [("find", 1)]


async def test_a_turn_that_waits_is_claimed_after_a_look_that_found_none(store: MongoStore) -> None:
    assert await store.claim("r2", lease=LEASE) is None
    key = await begin(store)
    turn = a_turn(key)
    head = HeadChange(active_turn=turn.id, wake=timedelta())
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=head, new_turns=(turn,))))
    claim = await store.claim("r2", lease=LEASE)
    assert claim is not None
    assert claim.turn_id == turn.id
    assert await store.claim("r2", lease=LEASE) is None
