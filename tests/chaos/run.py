"""Runs a cluster under load, a nemesis and the checker, and makes the report."""

import asyncio
import contextlib
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pymongo.errors import PyMongoError

from tests.chaos import cluster as clusters
from tests.chaos import report, tenants, tools
from tests.chaos.cluster import DATABASE, Cluster, Plan
from tests.chaos.database import Probe
from tests.chaos.nemesis import Nemesis
from tests.chaos.programs import Program
from tests.chaos.prompts import Prompts
from tests.chaos.reading import is_settled
from tests.chaos.servers import environment
from tests.chaos.services.census import Census
from tests.chaos.strikes import Faults, Strike

HERE: Final = Path(__file__).parent
LOAD_GRACE: Final = 120.0
SETTLE_TIME: Final = 90.0
CHECK_TIME: Final = 180.0
STATUS_EVERY: Final = 10.0
CALLS_AT_WORK: Final = 64
"""Of each server. A machine that runs all parts finishes little: what a flood leaves must not outlast the run."""
WIDTH: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a run. `folder` is for logs and records; it is emptied first."""

    seed: int
    minutes: float
    kinds: Sequence[str]
    folder: Path
    report: Path
    clocks: bool = True
    lease: float = clusters.LEASE
    sessions: int | None = None
    quiet: bool = False


async def run(options: Options) -> Mapping[str, Any]:
    """Runs, writes the report to the file of the options, and returns it. Every started process has ended then.

    Raises NoFaketime if clocks are to be set and libfaketime is missing.
    """
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.unlink(missing_ok=True)
    result = await _Run(options).run()
    options.report.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


class _Run:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._folder = options.folder
        self._faults = Faults(options.folder / "faults.jsonl")
        self._trouble: list[str] = []
        self._began = time.monotonic()

    async def run(self) -> Mapping[str, Any]:
        options = self._options
        self._print(f"chaos: seed {options.seed}, {options.minutes:g} min, {len(options.kinds)} kinds of fault")
        tenants.write(self._folder / tenants.FOLDER)
        plan = Plan(
            logs=self._folder,
            agents=HERE / "agents.toml",
            script=HERE / "model.toml",
            variables=tools.variables(self._folder),
            lease=options.lease,
            clocks=options.clocks,
            services=self._folder,
            flags=("--calls-at-work", str(CALLS_AT_WORK), *tenants.flags(self._folder / tenants.FOLDER)),
        )
        async with clusters.running(plan) as cluster:
            self._print("a replica set of three, three servers, their tool servers and a scripted model are up")
            self._began = time.monotonic()
            probe = Probe(cluster.database.uri, on_gap=self._faults.unwritable)
            assert cluster.services is not None
            census = cluster.services.census
            async with Prompts(cluster.model_url, self._folder).kept(), census.kept():
                async with probe.running():
                    await self._storm(cluster)
                settled = await self._settle(cluster)
            await asyncio.gather(*(server.drain() for server in cluster.servers))
            left = await self._processes_left(census)
            checked = await self._check(cluster)
        demanded = report.Run(seed=options.seed, minutes=options.minutes, lease=options.lease, kinds=options.kinds)
        figures = {
            **checked,
            "longest_unwritable_seconds": round(probe.longest, 2),
            "settled_seconds": round(settled, 1),
            "stdio_servers": {"started": len(census.pids), "bereaved": len(census.bereaved), "left": left},
        }
        return report.report(demanded, faults=self._faults.tally(), checked=figures, trouble=self._trouble)

    async def _storm(self, cluster: Cluster) -> None:
        """Runs load and faults for the given minutes, until the load has ended and the cluster is whole."""
        seconds = self._options.minutes * 60
        load = self._load(cluster, seconds)
        load.start()
        nemesis = Nemesis(
            cluster, self._faults, seed=self._options.seed, kinds=self._options.kinds, on_strike=self._show_strike
        )
        try:
            async with nemesis.at_work():
                await self._watch(cluster, load, seconds=seconds)
            self._print("healed: all programs run again; the clients finish what they began")
            status = await self._ended(load, cluster)
        finally:
            await load.kill_if_running()
        if status != 0:
            self._trouble.append(f"the load ended with status {status}: {load.output()[-500:]}")

    async def _watch(self, cluster: Cluster, load: Program, *, seconds: float) -> None:
        until = self._began + seconds
        while time.monotonic() < until and load.running:
            await asyncio.sleep(min(STATUS_EVERY, max(0.1, until - time.monotonic())))
            await self._status(cluster)

    async def _ended(self, load: Program, cluster: Cluster) -> int | None:
        deadline = time.monotonic() + LOAD_GRACE
        while (status := await load.ended(seconds=STATUS_EVERY)) is None and time.monotonic() < deadline:
            await self._status(cluster)
        if status is None:
            self._trouble.append(f"the clients were not done {LOAD_GRACE:.0f} s after the faults")
            return await load.end(seconds=20)
        return status

    async def _settle(self, cluster: Cluster) -> float:
        """Returns the seconds until every turn had ended or waited; turns that still move are trouble."""
        began = time.monotonic()
        states: Mapping[str, int] = {}
        while time.monotonic() - began < SETTLE_TIME:
            with contextlib.suppress(PyMongoError):
                if await is_settled(cluster.client[DATABASE]):
                    return time.monotonic() - began
                states = await cluster.states()
            await asyncio.sleep(0.5)
        self._trouble.append(f"{SETTLE_TIME:.0f} s after the load some turns still move: {dict(states)}")
        return time.monotonic() - began

    async def _processes_left(self, census: Census) -> int:
        """Returns how many processes of MCP servers live once all replicas have ended; each that stayed is trouble."""
        left = await census.at_the_end()
        if left:
            self._trouble.append(f"{left} processes of MCP servers outlived all replicas")
        if census.outlived:
            self._trouble.append(f"processes of MCP servers outlived their replicas, by seconds: {census.outlived}")
        return left

    async def _check(self, cluster: Cluster) -> Mapping[str, Any]:
        file = self._folder / "checked.json"
        command = [sys.executable, "-m", "tests.chaos.checker", "--uri", cluster.database.uri, "--database", DATABASE]
        where = ["--dir", self._folder, "--report", file, "--faults", self._folder / "faults.jsonl"]
        checker = Program(
            "checker", [*command, *map(str, where)], log=self._folder / "checker.log", environ=environment()
        )
        checker.start()
        status = await checker.ended(seconds=CHECK_TIME)
        await checker.kill_if_running()
        if not file.exists() or status not in (0, 1):
            self._trouble.append(f"the checker could not check (status {status}): {checker.output()[-1000:]}")
            return {}
        checked: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if status == 1 and not (checked.get("violations") or checked.get("not_checked")):
            self._trouble.append("the checker failed without a violation in its report")
        return checked

    def _load(self, cluster: Cluster, seconds: float) -> Program:
        command = [sys.executable, "-m", "tests.chaos.load", "--addresses", ",".join(cluster.addresses)]
        identity = self._folder / tenants.FOLDER
        how = ["--identity", identity, "--seed", self._options.seed, "--seconds", seconds, "--out", self._folder]
        crowd = ["--sessions", self._options.sessions] if self._options.sessions else []
        return Program(
            "load", [*command, *map(str, [*how, *crowd])], log=self._folder / "load.log", environ=environment()
        )

    async def _status(self, cluster: Cluster) -> None:
        try:
            states = await cluster.states()
        except PyMongoError:
            self._print("the database does not answer just now")
            return
        confirmed = sum(strike.confirmed is not None for strike in self._faults.strikes)
        turns = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()))
        self._print(f"{confirmed} faults; turns: {turns or 'none yet'}")

    def _show_strike(self, strike: Strike) -> None:
        evidence = "; ".join(strike.evidence) if strike.confirmed else f"NOT CONFIRMED {strike.error} {strike.evidence}"
        self._print(f"  {strike.kind} {strike.target}: {evidence}")

    def _print(self, words: str) -> None:
        if not self._options.quiet:
            minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
            print(textwrap.fill(f"{minutes}:{seconds:02} {words}", WIDTH, subsequent_indent=" " * 8), flush=True)
