"""What a measure of load needs: servers on one core; load, reader and model on another; samples meanwhile."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from tests.bench import cores
from tests.bench.bench import Bench
from tests.bench.cpu import cpu_seconds
from tests.bench.figures import Invalid
from tests.bench.jobs import delaying, offered, turns
from tests.bench.jobs.offered import Record
from tests.bench.parts import Runner, Served
from tests.processes import resident

READS: Final = 50.0
"""Calls of GetSession a second, of callers that have nothing to do with the load."""
_SAMPLED: Final = 0.2


@dataclass(frozen=True, slots=True)
class Sample:
    """What was looked at: when, each core's clock, CPU seconds of server and database, the server's MiB of memory."""

    at: float
    clocks: list[cores.Clock]
    cpu: float
    memory: float


@dataclass(frozen=True, slots=True)
class Observed:
    """The result of a load, the reads meanwhile, and the samples. Times are the monotonic clock's."""

    result: Any
    began: float
    reads: list[Record]
    samples: list[Sample]

    def between(self, start: float, end: float) -> list[Sample]:
        """Returns the samples of these seconds after the begin."""
        return [sample for sample in self.samples if start <= sample.at - self.began <= end]

    def use(self, start: float, end: float) -> list[float]:
        """Returns the share of each core that was used in these seconds after the begin."""
        first, *_, last = self.between(start, end)
        return cores.used(first.clocks, last.clocks)

    def others(self, start: float, end: float) -> float:
        """Returns the share of the serving core that other programs used in these seconds after the begin."""
        first, *_, last = self.between(start, end)
        ours = (last.cpu - first.cpu) / (last.at - first.at)
        return max(0.0, self.use(start, end)[cores.SERVING] - ours)


@dataclass(frozen=True, slots=True)
class Ground:
    """What each server of a measure is started with, and who drives it."""

    bench: Bench
    name: str
    model_url: str
    database_uri: str
    reader: Runner

    @contextlib.asynccontextmanager
    async def server(self, *flags: str) -> AsyncIterator[Served]:
        """Starts a server with a database of its own, on the serving core."""
        database = f"{self.name.replace('.', '-')}-{uuid.uuid4().hex[:8]}"
        variables = {"OPENAI_BASE_URL": self.model_url, "MONGODB_URI": self.database_uri}
        async with self.bench.parts.server(database, *flags, database=database, **variables) as server:
            for pid in server.pids:
                cores.keep(pid, {cores.SERVING})
            yield server

    @contextlib.asynccontextmanager
    async def driver(self, name: str) -> AsyncIterator[Runner]:
        """Starts a process for jobs, on the driving core."""
        async with self.bench.parts.runner(name) as runner:
            for pid in runner.pids:
                cores.keep(pid, {cores.DRIVING})
            yield runner

    async def observe(self, server: Served, load: Coroutine[Any, Any, Any], *, seconds: float) -> Observed:
        """Awaits the load, reads sessions for so many seconds, and samples until both have ended."""
        arguments = {"address": server.address, "phases": [[READS, seconds]]}
        sessions = await self.reader.run(turns.create_sessions, address=server.address, count=10)
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(load)
            reading = group.create_task(self.reader.run(offered.offer_reads, sessions=sessions, **arguments))
            samples = await _samples(server, self.bench.parts.database_pids, [loading, reading])
        read = reading.result()
        reads = [(at + read["began"], took, end) for at, took, end in read["records"]]
        return Observed(loading.result(), began, reads, samples)


@contextlib.asynccontextmanager
async def ground(bench: Bench, name: str, *, delay: float = 0.0) -> AsyncIterator[Ground]:
    """Starts what drives the servers, and keeps both sides on their cores.

    `delay`: seconds that are added to each operation of the database.
    """
    parts = bench.parts
    model = await parts.pacing_model()
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(parts.runner("reader"))
        driving = [*model.pids, *parts.load.pids, *reader.pids]
        uri = parts.database.uri
        if delay:
            wire = await stack.enter_async_context(parts.runner("wire"))
            target = uri.partition("/?")[0].rpartition(":")[2]
            port = await wire.run(delaying.open_proxy, target=int(target), seconds=delay)
            uri = delaying.address(uri, port)
            driving += wire.pids
        stack.enter_context(cores.pinned(serving=parts.database_pids, driving=driving))
        yield Ground(bench, name, model.address, uri, reader)


async def _samples(server: Served, database: list[int], until: Sequence[asyncio.Task[Any]]) -> list[Sample]:
    """Takes samples until the tasks are done. Raises Invalid if the server ends."""
    pids, samples = server.pids, list[Sample]()
    while not all(task.done() for task in until):
        if not server.program.running:
            raise Invalid(f"the server ended; its output:\n{server.program.output()[-2000:]}")
        cpu, held = cpu_seconds([*pids, *database]), sum(map(resident, pids))
        samples.append(Sample(time.monotonic(), cores.clocks(), cpu, held / 2**20))
        await asyncio.sleep(_SAMPLED)
    return samples
