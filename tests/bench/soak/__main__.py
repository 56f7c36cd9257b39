"""`make soak MINUTES=30`: mixed load on three replicas; slopes of memory, descriptors, collections and p99."""

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson
from pymongo import AsyncMongoClient

from tests.bench.figures import Invalid
from tests.bench.machine import busy, machine
from tests.bench.parts import Parts, Served, cancel_on_signals
from tests.bench.soak import mixed
from tests.bench.soak.slopes import Slope, slopes
from tests.chaos.programs import REPOSITORY
from tests.processes import resident
from turnkeeper.store.embedded import EmbeddedDatabaseError

REPLICAS: Final = 3
USERS: Final = 24
WINDOW: Final = 10.0
"""Seconds of load between two samples."""
SETTLING: Final = 3.0
"""Minutes after which slopes are taken; a quarter of a shorter soak."""
DATABASE: Final = "soak"
FLAGS: Final = ("--purge-after", "1m", "--keep-events", "1m")
"""What is deleted is removed within the soak, so that no collection needs to grow."""
INSTALLED: Final = "build/bench-plots.stamp"
PYTHON: Final = REPOSITORY / "build" / "bench-plots" / "bin" / "python"


def main() -> int:
    """Runs the soak. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="minutes of load (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/soak.json"), metavar="FILE", help="%(default)s")
    parser.add_argument("--no-plot", action="store_true", help="only the table and the file")
    options = parser.parse_args()
    try:
        with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            return asyncio.run(soak(options.minutes, options.out, plot=not options.no_plot))
    except (EmbeddedDatabaseError, Invalid) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    print("\nsoak: interrupted; every process that it started was stopped", file=sys.stderr)
    return 130


async def soak(minutes: float, out: Path, *, plot: bool) -> int:
    """Runs the load, writes `out`, plots it beside as PNG, and prints the slopes. Returns the exit status."""
    cancel_on_signals()
    if warning := busy():
        print(f"soak: {warning}", file=sys.stderr)
    samples, ends = list[dict[str, Any]](), Counter[str]()
    async with Parts() as parts, AsyncExitStack() as stack:
        model = await parts.pacing_model()
        servers = [
            await stack.enter_async_context(
                parts.server(f"replica-{number}", *FLAGS, database=DATABASE, OPENAI_BASE_URL=model.address)
            )
            for number in range(1, REPLICAS + 1)
        ]
        words = {"addresses": [server.address for server in servers], "users": USERS, "seconds": WINDOW}
        client = await stack.enter_async_context(AsyncMongoClient[dict[str, Any]](parts.database.uri))
        began, turns = time.monotonic(), 0
        while (minute := (time.monotonic() - began) / 60) < minutes:
            window = await parts.load.run(mixed.live, **words)
            turns += window["turns"]
            ends.update(window["ends"])
            minute = (time.monotonic() - began) / 60
            values = await sample(servers, client, window)
            samples.append({"minute": minute, "turns": turns, "values": values})
            print(f"soak: {minute:.1f} of {minutes:g} minutes, {turns} turns", file=sys.stderr, flush=True)
    after = min(SETTLING, minutes / 4)
    result = slopes(samples, after=after)
    report = {"after": after, "samples": samples, "slopes": {name: asdict(value) for name, value in result.items()}}
    _write(out, {"machine": machine(), **report, "ends": ends})
    print(f"{machine()}\n{table(result)}\nacts by their end: {dict(ends)}\n{turns} turns; {out}")
    return await _plot(out) if plot else 0


async def sample(
    servers: list[Served], client: AsyncMongoClient[dict[str, Any]], window: dict[str, Any]
) -> dict[str, float]:
    """Returns the values of one moment by name."""
    values: dict[str, float] = {"p99.turn": window["turn_p99"] or 0.0, "p99.read": window["read_p99"] or 0.0}
    for number, server in enumerate(servers, 1):
        if not server.program.running:
            raise Invalid(f"a replica ended; its output:\n{server.program.output()[-2000:]}")
        values[f"memory.{number}"] = sum(map(resident, server.pids)) / 2**20
        values[f"descriptors.{number}"] = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in server.pids)  # noqa: PTH208
    database = client[DATABASE]
    for name in sorted(await database.list_collection_names()):
        stats = await database.command("collStats", name)
        values[f"documents.{name}"] = stats["count"]
        values[f"bytes.{name}"] = stats["size"] / 1024
    return values


def table(result: dict[str, Slope]) -> str:
    """Returns a line for each value: at first, at last, and its slope. Memory is in MiB, its slope in KiB."""
    lines = [f"{'value':28} {'first':>12} {'last':>12} {'for 100 turns':>14}"]
    for name, value in result.items():
        memory = name.startswith("memory.")
        growth = f"{1024 * value.per_100_turns:.2f} KiB" if memory else f"{value.per_100_turns:.3g}"
        lines.append(f"{name:28} {value.first:12.1f} {value.last:12.1f} {growth:>14}")
    return "\n".join(lines)


def _write(out: Path, report: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))


async def _plot(out: Path) -> int:
    """Plots in an environment of its own, which is installed first if it is missing. Returns the exit status."""
    make = await asyncio.create_subprocess_exec("make", "--no-print-directory", "-s", INSTALLED, cwd=REPOSITORY)
    if await make.wait() != 0:
        print("soak: what plots cannot be installed; the reason is above", file=sys.stderr)
        return 1
    target = out.with_suffix(".png")
    script = Path(__file__).with_name("plot.py")
    plotting = await asyncio.create_subprocess_exec(str(PYTHON), str(script), str(out), str(target))
    status = await plotting.wait()
    if status == 0:
        print(f"plotted: {target}")
    return status


if __name__ == "__main__":
    sys.exit(main())
