"""`make chaos-rolling`: replaces three replicas under load by another version, and once more.

By default the other version is this one, behaving as the next one would, and it stays. With `--other` it is another
installation: the replicas begin with it, are replaced by this one, and end with the other one again. So each reads and
continues what the other has written.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import harness
from tests.chaos.rolling.load import SCRIPT, Load
from tests.checker.compare import differences
from tests.demo.ports import free_port
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.settings import Settings, shown
from turnkeeper.store.embedded import EmbeddedMongo

REPORT = Path("build/chaos-rolling.json")
DATABASE = "rolling"
REPLICAS = 3
LEASE = shown(Settings().lease)
"""The default of this version."""
SETTLE = 5.0
"""Seconds of load before, between and after."""
BETWEEN = 3.0
"""Seconds from the start of one replica to the end of the next, at most."""
AGENTS = """
[[agent]]
name = "talker"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of the service: the interpreter that has it, and the variables that it is started with."""

    name: str
    python: str = sys.executable
    variables: Mapping[str, str] = field(default_factory=dict)


THIS = Version(name="this version")
NEXT = Version(name="the next version", variables={"TURNKEEPER_TEST_SCHEMA": "N+1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The parts that every replica is started with."""

    mongo_uri: str
    model: ScriptedModel
    agents: Path


class Replica:
    """A server at one port, replaced in place."""

    def __init__(self, stage: Stage, *, port: int) -> None:
        self.port = port
        self._stage = stage
        self._stack = contextlib.AsyncExitStack()
        self._server: harness.ServerProcess | None = None

    async def start(self, version: Version) -> None:
        stage = self._stage
        flags = ("--agents", str(stage.agents), "--port", str(self.port), "--lease", LEASE, "--drain-delay", "1s")
        program = harness.server_process(
            stage.mongo_uri,
            DATABASE,
            stage.model,
            flags=(*flags, "--drain-grace", "10s", "--log-level", "ERROR"),
            variables=version.variables,
            python=version.python,
        )
        self._server = await self._stack.enter_async_context(program)

    async def replace(self, version: Version) -> float:
        """Drains the server with SIGTERM and starts the next version. Returns the seconds of the drain."""
        if self._server is None:
            raise RuntimeError("nothing runs that could be replaced")
        began = time.monotonic()
        status = await self._server.terminate()
        drained = time.monotonic() - began
        if status:
            raise RuntimeError(f"a replica did not drain: its exit status was {status}")
        await self.start(version)
        return drained

    async def stop(self) -> None:
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def _replicas(stage: Stage, version: Version) -> AsyncIterator[list[Replica]]:
    replicas = [Replica(stage, port=free_port()) for _ in range(REPLICAS)]
    try:
        for replica in replicas:
            await replica.start(version)
        yield replicas
    finally:
        for replica in replicas:
            await replica.stop()


async def run(args: argparse.Namespace) -> int:
    drains: list[float] = []
    other = Version(name=args.other, python=args.other) if args.other else None
    rng = random.Random(args.seed)
    first, *rounds = (other, THIS, other) if other else (THIS, NEXT, NEXT)
    with tempfile.TemporaryDirectory(prefix="turnkeeper-rolling-") as folder:
        agents = Path(folder) / "agents.toml"
        agents.write_text(AGENTS, encoding="utf-8")
        async with EmbeddedMongo(Path(folder) / "database") as uri, harness.scripted(SCRIPT) as model:
            async with _replicas(Stage(mongo_uri=uri, model=model, agents=agents), first) as replicas:
                load = Load("ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in replicas))
                working = asyncio.create_task(load.run(talkers=args.talkers, askers=args.askers))
                for number, version in enumerate(rounds, 1):
                    await asyncio.sleep(SETTLE)
                    for replica in rng.sample(replicas, len(replicas)):
                        await asyncio.sleep(rng.uniform(0, BETWEEN))
                        drains.append(await replica.replace(version))
                        print(
                            f"chaos-rolling: round {number}, drained in {drains[-1]:.1f} s, now {version.name}",
                            flush=True,
                        )
                await asyncio.sleep(SETTLE)
                load.stop.set()
                await working
            broken = await differences(uri, DATABASE)
    return _show_report(load, drains, broken, seed=args.seed)


def _show_report(load: Load, drains: list[float], broken: list[str], *, seed: int) -> int:
    counts = load.counts
    report: dict[str, Any] = {
        "seed": seed,
        "lease": LEASE,
        "replicas": REPLICAS,
        "replaced": len(drains),
        "longest_drain_seconds": round(max(drains), 1),
        "turns": counts.turns,
        "streams": counts.streams,
        "unary_calls": counts.unary,
        "slowest_unary_seconds": round(counts.slowest_unary, 2),
        "violations": {
            "calls failed after the client's retries": len(counts.failed),
            "streams that were wrong": len(counts.wrong),
            "documents that differ from their log": len(broken),
        },
        "complaints": [*counts.failed, *counts.wrong, *broken],
    }
    for name in (
        "seed",
        "lease",
        "replaced",
        "longest_drain_seconds",
        "turns",
        "streams",
        "unary_calls",
        "slowest_unary_seconds",
    ):
        print(f"{name.replace('_', ' '):30} {report[name]}")
    for complaint in report["complaints"][:20]:
        print(f"  {complaint}")
    print(", ".join(f"{name}: {count}" for name, count in report["violations"].items()))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"report: {REPORT}")
    return 1 if any(report["violations"].values()) or not counts.turns else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.rolling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m tests.chaos.rolling --talkers 4 --askers 2\n"
        '  make chaos-rolling CHAOS_ARGS="--seed 2"\n'
        '  make chaos-rolling CHAOS_ARGS="--other ../released/.venv/bin/python"',
    )
    parser.add_argument(
        "--other", metavar="PYTHON", help="interpreter with another version: begin and end with it [the next version]"
    )
    parser.add_argument("--seed", type=int, default=1, help="decides the order of replicas, and the pauses [1]")
    parser.add_argument("--talkers", type=int, default=12, help="sessions that talk at once [12]")
    parser.add_argument("--askers", type=int, default=6, help="callers of short calls [6]")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
