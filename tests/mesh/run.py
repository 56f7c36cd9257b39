"""Runs the phases of `make mesh`, one after the other, and judges what they show."""

import asyncio
import contextlib
import json
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from grpc import aio

from tests.chaos.programs import Program
from tests.mesh import latency, phases, shipped_files, stage, waits, web
from tests.mesh.answers import TIMES, Counted, answers
from tests.mesh.envoy import install
from tests.mesh.faults import Faults
from tests.mesh.findings import Findings, Phase
from tests.mesh.judging import judge
from tests.mesh.phases import PHASES
from tests.mesh.rotation import rotate
from tests.mesh.stage import Stage
from turnkeeper_client.errors import TurnkeeperError

REPORT: Final = Path("build/mesh.json")
LOAD_END: Final = 120.0
"""Seconds that the callers have to finish what they began."""

Show = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run does.

    `files`: the folder of Envoy's files, which must be the shipped ones for the run to pass. `folder`: emptied first.
    """

    seed: int = 1
    quick: bool = False
    phases: Sequence[str] = tuple(PHASES)
    files: Path = shipped_files.SHIPPED
    folder: Path = Path("build/mesh")

    @property
    def whole(self) -> bool:
        """True if the run makes every fault as often as it can."""
        return not self.quick and len(self.phases) == len(PHASES)

    @property
    def replicas(self) -> int:
        """How many replicas are restarted and killed."""
        return 1 if self.quick else 3

    @property
    def pairs(self) -> int:
        return 100 if self.quick else latency.PAIRS


class Run:
    """One run. `show` prints a line of progress."""

    def __init__(self, options: Options, show: Show) -> None:
        self._options = options
        self._show = show
        self.findings = Findings()

    async def run(self) -> Findings:
        """Runs everything. Raises NoEnvoy, EmbeddedDatabaseError or RuntimeError if a part does not start."""
        shutil.rmtree(self._options.folder, ignore_errors=True)
        folder = self._options.folder.absolute()
        folder.mkdir(parents=True)
        self._show("installing Envoy, if it is missing")
        await install()
        self._show("starting database, model, three replicas and Envoy")
        async with stage.running(folder, files=self._options.files) as running:
            await self._phases(running)
            least = 100 if self._options.whole else 1
            await judge(self.findings, running, phases=self._options.phases, least=least)
        return self.findings

    async def _phases(self, running: Stage) -> None:
        self._check_files(running, await running.envoy.used_file())
        self._show(f"latency: {self._options.pairs} calls straight and through Envoy")
        self.findings.figures["latency"] = await latency.added(running, pairs=self._options.pairs)
        async with stage.loaded(running, seed=self._options.seed) as callers:
            try:
                await self._under_load(running)
            except (TimeoutError, RuntimeError, aio.AioRpcError, TurnkeeperError) as error:
                self.findings.complaints.append(f"the run broke off: {error!r}")
                self.findings.expect("every phase came to its end", type(error).__name__, held=False)
            await self._end(callers)

    async def _under_load(self, running: Stage) -> None:
        faults = Faults(running, self.findings, self._show)
        for name in self._options.phases:
            async with self._phase(PHASES[name]):
                await self._do(name, running, faults)
        await faults.settled()

    async def _do(self, name: str, running: Stage, faults: Faults) -> None:
        """Does what is in one phase."""
        chosen = self._chosen(running)
        match name:
            case phases.ANSWERS:
                await self._quiet(running, faults)
            case phases.RESTARTS | phases.KILLS:
                for replica in chosen:
                    await (faults.restart if name == phases.RESTARTS else faults.kill)(replica)
            case phases.FREEZE:
                await faults.freeze(chosen[-1])
            case phases.SILENCE:
                await faults.mute(chosen[0])
            case phases.DATABASE:
                await faults.freeze_database()

    async def _quiet(self, running: Stage, faults: Faults) -> None:
        """Everything that breaks nothing: while calls wait for the model, answers are counted, certificates renewed."""
        await faults.settled()
        waiting = asyncio.create_task(waits.wait(running))
        try:
            async with answers(running, times=TIMES) as calls:
                kinds = (calls.unimplemented, calls.rate_limited, calls.frozen, calls.not_available, calls.unavailable)
                for count in kinds:
                    await self._counted(running, count)
            self._show("renewing the certificates of both sides")
            await rotate(running, self.findings)
            self._show("calling by gRPC-Web from Node")
            self._web(await web.call(running))
            self._show(f"{2 * waits.COUNT} waiting calls and idle streams; {waits.WAIT:.0f} s in all")
            waited = await waiting
        finally:
            waiting.cancel()
        self.findings.figures["waits"] = {"calls": waited.calls, "idle_streams": waited.streams}
        self.findings.figures["waits"]["seconds"] = round(waited.seconds, 1)
        self.findings.complaints += waited.broken
        about = f"waiting calls answered after {waits.WAIT:.0f} s, idle streams whole on one connection"
        self.findings.expect(about, f"{len(waited.broken)} not", held=not waited.broken)

    async def _counted(self, running: Stage, count: Callable[[], Awaitable[Counted]]) -> None:
        """Counts one kind of answer, and the ejections while it came."""
        before = await running.envoy.ejections()
        counted = await count()
        after = await running.envoy.ejections()
        ejected = sum(after[kind] - before[kind] for kind in after if kind != "would")
        would = after["would"] - before["would"]
        self._show(f"{counted.times} answers {counted.kind}: {ejected} ejections (counting them: {would})")
        of_kind = {"answers": counted.times, "ejections": ejected, "would_have_ejected": would}
        self.findings.figures.setdefault("answers", {})[counted.kind] = of_kind
        self.findings.complaints += [
            f"{counted.kind}: {times} answers {other}" for other, times in counted.others.items()
        ]

    def _web(self, result: web.Web) -> None:
        if result.skipped:
            self._show(result.skipped)
            self.findings.figures["web"] = result.skipped
            return
        self.findings.complaints += result.broken
        self.findings.figures["web"] = "called"
        self.findings.expect("a page can call by gRPC-Web", f"{len(result.broken)} faults", held=not result.broken)

    def _check_files(self, running: Stage, used: Path) -> None:
        changed = shipped_files.differences(used, running.values)
        self.findings.complaints += changed[:10]
        self.findings.expect("Envoy's files are the shipped ones", f"{len(changed)} lines differ", held=not changed)

    def _chosen(self, running: Stage) -> list[Any]:
        """Returns the replicas in the order of this seed, as many as the run takes."""
        first = self._options.seed % len(running.replicas)
        ordered = [*running.replicas[first:], *running.replicas[:first]]
        return ordered[: self._options.replicas]

    @contextlib.asynccontextmanager
    async def _phase(self, name: str) -> AsyncIterator[None]:
        self._show(name)
        phase = Phase(name)
        self.findings.phases.append(phase)
        try:
            yield
        finally:
            phase.ended = time.time()

    async def _end(self, callers: Program) -> None:
        self._show("the callers finish what they began")
        status = await callers.end(seconds=LOAD_END)
        if status != 0:
            self.findings.complaints.append(callers.output()[-1000:])
        self.findings.expect("the callers came to their end", f"status {status}", held=status == 0)


def write(findings: Findings, options: Options, *, to: Path) -> None:
    """Writes the report, JSON."""
    promises = [{"about": one.about, "measured": one.measured, "held": one.held} for one in findings.promises]
    report = {
        "passed": findings.held,
        "seed": options.seed,
        "quick": options.quick,
        "phases": list(options.phases),
        **findings.figures,
        "faults": [fault.as_figures for fault in findings.faults],
        "promises": promises,
        "complaints": dict(Counter(findings.complaints)),
    }
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
