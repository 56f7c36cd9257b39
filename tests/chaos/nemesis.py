"""Does to a cluster what the plan says, and keeps a record of it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from tests.chaos.cluster import Cluster
from tests.chaos.faults.kinds import KINDS
from tests.chaos.plan import Lane, Planned, planned
from tests.chaos.strikes import Faults, Strike

LONGEST: Final = 75.0
"""Seconds that a fault may take, with the return to a whole cluster; then it is given up, and does not count."""


class Nemesis:
    """Every lane at work from `at_work` on; each ends with the fault that it is at."""

    def __init__(
        self, cluster: Cluster, faults: Faults, *, seed: int, kinds: Sequence[str], tell: Callable[[Strike], None]
    ) -> None:
        """`tell` is called after each fault."""
        self._cluster = cluster
        self._faults = faults
        self._seed = seed
        self._kinds = kinds
        self._tell = tell
        self._over = asyncio.Event()

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Strikes during the block. After it the faults under way are undone, and the cluster is healed."""
        lanes = [asyncio.create_task(self._lane(lane)) for lane in Lane]
        try:
            yield
            self._over.set()
            await asyncio.gather(*lanes)
            await self._cluster.heal()
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)

    async def _lane(self, lane: Lane) -> None:
        kinds = [name for name in self._kinds if KINDS[name].lane is lane]
        for each in planned(lane, kinds, seed=self._seed):
            if await self._pause(each.pause):
                return
            await self._strike(each)

    async def _pause(self, seconds: float) -> bool:
        """Whether it is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()
        return self._over.is_set()

    async def _strike(self, each: Planned) -> None:
        strike = Strike(kind=each.kind, lane=each.lane, number=each.number)
        started = time.monotonic()
        try:
            async with asyncio.timeout(LONGEST):
                await KINDS[each.kind].do(self._cluster, strike, each.rng)
        except Exception as error:  # noqa: BLE001 - what cannot be done just now is told, and does not count
            strike.error = f"{type(error).__name__}: {error} (after {time.monotonic() - started:.1f} s)"[:300]
            if strike.lane is not Lane.WIRE:
                await self._mend(strike)
        strike.end()
        self._faults.add(strike)
        self._tell(strike)

    async def _mend(self, strike: Strike) -> None:
        """What a fault that failed left behind in its lane must not stay."""
        try:
            if strike.lane is Lane.DATABASE:
                await self._cluster.database.heal()
            else:
                await self._cluster.heal_servers()
        except Exception as error:  # noqa: BLE001 - the end of the run heals again, and fails when it cannot
            strike.error += f"; not mended: {type(error).__name__}"
