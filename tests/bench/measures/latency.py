"""Measures delays: an event to its watchers, a decision to its tool, a dead replica's turn to another."""

import time
from collections.abc import Sequence

from tests.bench.bench import Bench, Measure
from tests.bench.cpu import cpu_seconds
from tests.bench.figures import Invalid, Row, row
from tests.bench.jobs import latency as jobs
from tests.chaos.figures import quantile

LEASE = "2s"
TURNS_LOST = 8
"""Turns that run on the replica that is killed."""


async def delivery(bench: Bench) -> list[Row]:
    """Measures with two replicas on one database; the writer is answered when a majority has the event."""
    subject, count = await bench.parts.subject(), 20 if bench.scale.quick else 100
    async with bench.parts.server("replica", database=subject.database) as replica:
        job = {"address": subject.address, "other": replica.address}
        await bench.parts.load.run(jobs.deliver, **job, count=5)
        rounds = [await bench.parts.load.run(jobs.deliver, **job, count=count) for _ in range(bench.scale.rounds)]
    about = {
        "here": "from the writer's answer to a watcher on the same replica",
        "there": "from the writer's answer to a watcher on another replica",
        "total_here": "from the writer's call, the commit included, to the same replica",
        "total_there": "from the writer's call, the commit included, to another replica",
        "commit": "from the writer's call to its answer",
        "turn_there": "from a turn's end at its caller to a watcher on another replica",
    }
    return percentiles("deliver", rounds, about)


async def decisions(bench: Bench) -> list[Row]:
    """Measures from an approval's decision until its tool runs."""
    subject, count = await bench.parts.subject(), 15 if bench.scale.quick else 50
    await bench.parts.load.run(jobs.decide, address=subject.address, count=3)
    rounds = [
        await bench.parts.load.run(jobs.decide, address=subject.address, count=count) for _ in range(bench.scale.rounds)
    ]
    about = {
        "commit": "from DecideApproval to its answer",
        "started": "from its answer to the event that the tool has started",
        "returned": "from its answer to the event that the tool has returned",
        "completed": "from its answer to the end of the turn",
    }
    return percentiles("decision", rounds, about)


def percentiles(name: str, rounds: Sequence[dict[str, list[float]]], about: dict[str, str]) -> list[Row]:
    """Returns two rows for each figure: p50 and p99 of each round."""
    return [
        row(
            f"{name}.{which}.p{share}",
            f"p{share} {description}",
            [quantile(samples[which], share / 100) or 0.0 for samples in rounds],
            unit="ms",
        )
        for which, description in about.items()
        for share in (50, 99)
    ]


async def take_over(bench: Bench) -> list[Row]:
    """Kills the replica that runs some turns, with SIGKILL; another replica takes them over."""
    taken, completed = list[float](), list[float]()
    flags = ("--lease", LEASE)
    for number in range(1 if bench.scale.quick else 3):
        bench.show_progress(f"take-over {number + 1}")
        async with (
            bench.parts.server(f"killed-{number}", *flags, database="take-over") as first,
            bench.parts.server(f"heir-{number}", *flags, database="take-over") as second,
        ):
            at = {"address": first.address, "other": second.address}
            await bench.parts.load.run(jobs.begin_turns, **at, count=TURNS_LOST)
            killed = time.perf_counter()
            await first.program.kill()
            results = await bench.parts.load.run(jobs.until_taken_over, killed=killed)
        if not results["taken"]:
            raise Invalid("every turn had ended before its replica was killed")
        taken += results["taken"]
        completed += results["completed"]
    return [
        row("takeover", f"kill -9 to the event that another has the turn, lease {LEASE}", taken, unit="s"),
        row("takeover.end", f"kill -9 to the turn's end, lease {LEASE}", completed, unit="s"),
    ]


async def start_up(bench: Bench) -> list[Row]:
    """Measures starts on a database that has been used before."""
    serving, healthy, cpu = list[float](), list[float](), list[float]()
    for number in range(2 if bench.scale.quick else 5):
        bench.show_progress(f"start {number + 1}")
        began = time.perf_counter()
        async with bench.parts.server(f"start-{number}", database="start-up") as server:
            serving.append(time.perf_counter() - began)
            healthy.append(await bench.parts.load.run(jobs.until_healthy, address=server.address) - began)
            cpu.append(cpu_seconds(server.pids))
    return [
        row("start.serving", "from the process's start to `serving on` (looked for every 30 ms)", serving, unit="s"),
        row("start.healthy", "to the first SERVING of its health service", healthy, unit="s"),
        row("start.cpu", "CPU until then", cpu, unit="s"),
    ]


MEASURES = (
    Measure("delivery", "a stored event to its watchers, on the same replica and on another", delivery),
    Measure("decisions", "a decision to its tool", decisions),
    Measure("take-over", "a killed replica's turns to another", take_over),
    Measure("start-up", "the start of a server", start_up),
)
