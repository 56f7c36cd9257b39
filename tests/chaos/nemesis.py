"""Carries out the planned faults on a cluster, and records them."""

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
"""Seconds for a fault and the return to a whole cluster. After them the fault is given up, and does not count."""


class Nemesis:
    """Runs every lane of faults; each ends with its current fault."""

    def __init__(
        self, cluster: Cluster, faults: Faults, *, seed: int, kinds: Sequence[str], on_strike: Callable[[Strike], None]
    ) -> None:
        """`on_strike` is called after each fault."""
        self._cluster = cluster
        self._faults = faults
        self._seed = seed
        self._kinds = kinds
        self._on_strike = on_strike
        self._over = asyncio.Event()

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Strikes during the block. After it the current faults are undone, and the cluster is healed."""
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
        for fault in planned(lane, kinds, seed=self._seed):
            if await self._pause(fault.pause):
                return
            await self._strike(fault)

    async def _pause(self, seconds: float) -> bool:
        """Waits. Returns True if the run is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()
        return self._over.is_set()

    async def _strike(self, fault: Planned) -> None:
        strike = Strike(kind=fault.kind, lane=fault.lane, number=fault.number)
        started = time.monotonic()
        try:
            async with asyncio.timeout(LONGEST):
                await KINDS[fault.kind].do(self._cluster, strike, fault.rng)
        except Exception as error:  # noqa: BLE001 - a fault that cannot be done now is reported, and does not count
            strike.error = f"{type(error).__name__}: {error} (after {time.monotonic() - started:.1f} s)"[:300]
            if strike.lane is not Lane.WIRE:
                await self._mend(strike)
        strike.end()
        self._faults.add(strike)
        self._on_strike(strike)

    async def _mend(self, strike: Strike) -> None:
        """Heals the lane of a fault that failed, so that nothing of it is left."""
        try:
            match strike.lane:
                case Lane.DATABASE:
                    await self._cluster.database.heal()
                case Lane.TOOLS:
                    await self._cluster.heal_tools()
                case _:
                    await self._cluster.heal_servers()
        except Exception as error:  # noqa: BLE001 - the end of the run heals again, and fails when it cannot
            strike.error += f"; not mended: {type(error).__name__}"
