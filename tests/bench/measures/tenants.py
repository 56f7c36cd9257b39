"""Measures what one tenant feels of another one that makes ten times the calls that it may."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.bench import Bench, Measure
from tests.bench.cpu import cpu_seconds
from tests.bench.figures import Row, row
from tests.bench.jobs import tenants
from tests.bench.measures.ground import Ground, ground
from tests.bench.parts import Served
from tests.chaos.figures import quantile
from tests.processes import resident

PER_SECOND: Final = 10
"""Messages a second that the greedy tenant may send, and that the steady one does."""
TIMES: Final = 10
CALLERS: Final = 40
REFUSALS: Final = 100_000
WARMING: Final = 40_000
"""Refusals before those that count: what a server holds for its first ones, it holds once."""
PRINCIPALS: Final = """
[[principal]]
name = "{name}"
tenant = "{name}"
roles = ["caller"]
certificates = ["spiffe://bench/{name}"]
"""
LIMITS: Final = f"""
[profiles.greedy]
principal = {{ SendMessage = {{ per_minute = {60 * PER_SECOND}, burst = {PER_SECOND} }} }}
[profiles.none]
principal = {{ SendMessage = {{ per_minute = 1, burst = 1 }} }}
[tenants]
greedy = "greedy"
flooding = "none"
"""


async def two_tenants(bench: Bench) -> list[Row]:
    """Offers the steady tenant's turns alone, and beside ten times what the greedy one may send."""
    flags = _flags(bench.parts.folder)
    rounds, seconds = (1, 10.0) if bench.scale.quick else (3, 20.0)
    async with ground(bench, "tenants") as load, load.server(*flags) as server:
        bench.show_progress("callers that wait as RetryInfo asks them to")
        words = {"address": server.address, "callers": CALLERS, "seconds": seconds}
        waited = await bench.parts.load.run(tenants.wait_as_told, **words)
        await _offer(load, server, greedy=PER_SECOND, seconds=5)
        alone, beside = list[dict[str, Any]](), list[dict[str, Any]]()
        for number in range(rounds):
            bench.show_progress(f"round {number + 1} of {rounds}")
            alone.append(await _offer(load, server, greedy=0, seconds=seconds))
            beside.append(await _offer(load, server, greedy=TIMES * PER_SECOND, seconds=seconds))
        flooded = await _flood(load, server)
    refused = [part["refused"] / part["requested"] for part in beside]
    p99_alone, p99 = (_p99(parts) for parts in (alone, beside))
    good_alone, good = (
        [part["completed"] / (seconds - tenants.SETTLING) for part in parts] for parts in (alone, beside)
    )
    again = 100 * waited["accepted"] / max(1, waited["back"])
    return [
        row("tenants.p99", "p99 of a turn beside the greedy tenant; floor: alone", [p99], unit="ms", floor=[p99_alone]),
        row("tenants.p99.above", "what the greedy tenant adds to it", [p99 - p99_alone], unit="ms"),
        row("tenants.goodput", "turns a second in time, beside; floor: alone", good, unit="/s", floor=good_alone),
        row("tenants.refused", "of the greedy tenant's calls", [100 * part for part in refused], unit="%"),
        row("tenants.again", f"of {waited['back']} calls that came back as asked, accepted", [again], unit="%"),
        *flooded,
    ]


def _p99(parts: Sequence[Mapping[str, Any]]) -> float:
    """Returns that of the turns of all rounds: in one of them it would be the second slowest turn."""
    return quantile(sorted(latency for part in parts for latency in part["latencies"]), 0.99) or 0.0


async def _offer(load: Ground, server: Served, *, greedy: float, seconds: float) -> dict[str, Any]:
    words = {"address": server.address, "steady": PER_SECOND, "greedy": greedy, "seconds": seconds}
    result: dict[str, Any] = await load.bench.parts.load.run(tenants.offer_by_two, **words)
    return result


async def _flood(load: Ground, server: Served) -> list[Row]:
    """Has many calls refused, of a tenant that may make none."""
    count = REFUSALS // 5 if load.bench.scale.quick else REFUSALS
    await load.bench.parts.load.run(tenants.flood, address=server.address, count=WARMING)
    before, spent = _memory(server), cpu_seconds(server.pids)
    refused = 0
    for _ in range(10):
        load.bench.show_progress(f"{refused:,} of {count:,} refusals")
        refused += await load.bench.parts.load.run(tenants.flood, address=server.address, count=count // 10)
    cpu = 1e6 * (cpu_seconds(server.pids) - spent) / refused
    memory = _memory(server) - before
    return [
        row("tenants.refusals.memory", f"memory after {refused:,} refusals, above before", [memory], unit="MiB"),
        row("tenants.refusals.cpu", "server's CPU of a refusal", [cpu], unit="µs"),
    ]


def _memory(server: Served) -> float:
    return sum(map(resident, server.pids)) / 2**20


def _flags(folder: Path) -> list[str]:
    principals, limits = folder / "principals.toml", folder / "limits.toml"
    principals.write_text("".join(PRINCIPALS.format(name=name) for name in ("steady", "greedy", "flooding")))
    limits.write_text(LIMITS)
    names = ("--principals", str(principals), "--limits", str(limits))
    return ["--identity", "forwarded", "--trusted-peers", "127.0.0.0/8", *names]


MEASURES = (Measure("tenants", "one tenant at ten times its limit, and another one", two_tenants),)
"""The measures, in the order in which they are run."""
