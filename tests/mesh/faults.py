"""The faults of a run. Each lands on a replica only while enough streams and calls are open there."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from tests.mesh.findings import AT_LEAST, Fault, Findings
from tests.mesh.replicas import Replica
from tests.mesh.stage import DATABASE, Open, Stage
from tests.mesh.takeovers import MODEL, TOOL, at_work, owned_by, still_owned

KILLED: Final = "killed"
FROZEN: Final = "frozen"
MUTE: Final = "accepts and never answers"
DRAINED: Final = "drained"
DATABASE_FROZEN: Final = "database frozen"
TURNS: Final = 24
"""Turns that a replica owns when it is lost: five such replicas make more than a hundred."""
SHARE: Final = 0.4
"""Of these turns, in the middle of a tool; and as many in the middle of the model's answer.

The run as a whole must have a third each: callers whose turns were taken over together go on in step for a while.
"""
BUSY_TIME: Final = 120.0
"""Seconds within which the callers must be back at a replica."""
DRAIN_TIME: Final = 60.0
OUT_TIME: Final = 30.0
TAKEN_TIME: Final = 90.0
LEAST_FREEZE: Final = 15.0
DATABASE_TIME: Final = 12.0
_OFTEN: Final = 0.1

Show = Callable[[str], None]


class Faults:
    """Makes faults, and records each in the findings. Raises TimeoutError where the parts do not come back."""

    def __init__(self, stage: Stage, findings: Findings, show: Show) -> None:
        self._stage = stage
        self._findings = findings
        self._show = show
        self._heads = stage.mongo[DATABASE]

    async def settled(self) -> None:
        """Waits until the callers are at every replica."""
        for replica in self._stage.replicas:
            await self._busy(replica)

    async def restart(self, replica: Replica) -> None:
        """Drains the replica with SIGTERM, as a kubelet does, and starts it again."""
        await self._busy(replica, DRAINED)
        began = time.monotonic()
        replica.program.send(signal.SIGTERM)
        status = await replica.program.ended(seconds=DRAIN_TIME)
        if status != 0:
            self._findings.complaints.append(f"{replica.name} did not drain: its exit status was {status}")
        self._show(f"{replica.name}: drained in {time.monotonic() - began:.1f} s")
        await self._back(replica)

    async def kill(self, replica: Replica) -> None:
        """Kills the replica, waits until its turns are taken over, and starts it again."""
        open_there = await self._busy(replica, turns=TURNS)
        began = time.time()
        await replica.program.kill()
        await self._lost(replica, KILLED, began, open_there)
        await self._back(replica)

    async def freeze(self, replica: Replica) -> None:
        """Stops the replica with SIGSTOP until its turns are taken over; then it goes on as if nothing had been."""
        open_there = await self._busy(replica, turns=TURNS)
        began = time.time()
        replica.program.send(signal.SIGSTOP)
        try:
            await self._lost(replica, FROZEN, began, open_there)
            await asyncio.sleep(max(0.0, began + LEAST_FREEZE - time.time()))
        finally:
            replica.program.send(signal.SIGCONT)
        self._show(f"{replica.name}: goes on after {time.time() - began:.1f} s")
        await self._stage.envoy.until_in(replica.address)

    async def mute(self, replica: Replica) -> None:
        """Puts a program in the replica's place that accepts connections and never answers; then starts it again."""
        open_there = await self._busy(replica, turns=TURNS)
        began = time.time()
        await replica.program.kill()
        async with _accepting(replica.ports.host, replica.ports.api, replica.ports.health):
            await self._lost(replica, MUTE, began, open_there)
        await self._back(replica)

    async def freeze_database(self) -> None:
        """Stops the database for DATABASE_TIME."""
        for replica in self._stage.replicas:
            await self._busy(replica, DATABASE_FROZEN)
        pid, began = self._stage.database.pid, time.monotonic()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(DATABASE_TIME)
        finally:
            os.kill(pid, signal.SIGCONT)
        self._show(f"the database goes on after {time.monotonic() - began:.1f} s")

    async def _busy(self, replica: Replica, kind: str = "", *, turns: int = 0) -> Open:
        """Waits until enough is open at the replica, and returns what is. With a kind, records the fault.

        `turns`: how many it must own, in the middle of a tool and of the model's answer as `mixed` demands.
        """
        deadline = time.monotonic() + BUSY_TIME
        while True:
            work = await at_work(self._heads, await owned_by(self._heads, replica.name)) if turns else {}
            open_there = await self._stage.open_at(replica)
            if open_there.streams >= AT_LEAST.streams and open_there.calls >= AT_LEAST.calls and mixed(work, turns):
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{replica.name} has {open_there} and turns {dict(work)} after {BUSY_TIME:.0f} s")
            await asyncio.sleep(_OFTEN)
        if kind:
            fault = Fault(kind=kind, replica=replica.name, began=time.time(), open=open_there)
            self._findings.faults.append(fault)
        return open_there

    async def _lost(self, replica: Replica, kind: str, began: float, open_there: Open) -> None:
        """Records the fault of a replica that was just lost, and waits until it is out and its turns taken over."""
        turns = await owned_by(self._heads, replica.name)
        await self._stage.envoy.until_out(replica.address, seconds=OUT_TIME)
        out = time.time() - began
        self._findings.faults.append(
            Fault(kind=kind, replica=replica.name, began=began, open=open_there, turns=frozenset(turns), out=out)
        )
        async with asyncio.timeout(TAKEN_TIME):
            while await still_owned(self._heads, turns):  # noqa: ASYNC110 - it sends none
                await asyncio.sleep(_OFTEN)
        taken = time.time() - began
        self._show(f"{replica.name}: {kind}; out in {out:.1f} s, its {len(turns)} turns went on within {taken:.1f} s")

    async def _back(self, replica: Replica) -> None:
        await replica.start()
        await self._stage.envoy.until_in(replica.address)


def mixed(work: Mapping[str, int], turns: int) -> bool:
    """Returns True if there are so many turns, and SHARE of them in a tool, SHARE in the model's answer."""
    owned = sum(work.values())
    return owned >= turns and min(work.get(TOOL, 0), work.get(MODEL, 0)) >= SHARE * owned


@contextlib.asynccontextmanager
async def _accepting(host: str, *ports: int) -> AsyncIterator[None]:
    """Accepts connections at these ports during the block, and answers nothing."""
    connections = set[asyncio.StreamWriter]()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        with contextlib.suppress(OSError):
            await reader.read(-1)

    async with contextlib.AsyncExitStack() as stack:
        for port in ports:
            server = await asyncio.start_server(accept, host, port, reuse_address=True)
            stack.callback(server.close)
        yield
        for writer in connections:
            writer.transport.abort()
