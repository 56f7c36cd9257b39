"""What sweeps ask of a database in which nothing happens."""

import asyncio
from datetime import UTC, datetime
from itertools import pairwise

from opentelemetry.metrics import NoOpMeterProvider

from tests.integration.mongo.commands import Recorder
from tests.processes import until
from turnkeeper.engine.replica.schedule import JitteredInterval
from turnkeeper.engine.replica.sweeper import SWEEPS_A_RESCUE, Sweeper
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.telemetry.metrics import Metrics


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
