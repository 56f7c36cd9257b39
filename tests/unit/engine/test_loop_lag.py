"""The event loop's lag is measured: at ease it is little, and what blocks the loop shows."""

import asyncio
import time

from tests.processes import until
from tests.unit.telemetry.calls import Meters
from turnkeeper.engine.replica.loop_lag import LoopLag

NAME = "turnkeeper.event_loop.lag"


def total(meters: Meters) -> float:
    return meters.points(NAME)[()] if NAME in meters.read() else 0.0


async def test_a_blocked_loop_shows_in_the_metric() -> None:
    meters = Meters()
    job = asyncio.create_task(LoopLag(meters.metrics, interval=0.001).run())
    await until(lambda: total(meters) > 0)
    before = total(meters)
    time.sleep(0.2)  # noqa: ASYNC251 - it is what is measured
    await until(lambda: total(meters) - before > 0.15)
    job.cancel()


async def test_nothing_is_measured_where_metrics_go_nowhere() -> None:
    meters = Meters()
    meters.metrics.counting = False
    await asyncio.wait_for(LoopLag(meters.metrics, interval=60).run(), timeout=5)
