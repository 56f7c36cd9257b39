"""`make chaos-takeover`: owners of turns are killed and frozen, at default settings; exit 1 if a limit is missed.

Each struck owner has three turns: in the midst of a call that must not run twice, of one that may, and of an answer of
the model. The database is frozen as well, while every server owns turns. The limits of the take-overs are those of a
machine that has nothing else to do.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.chaos.figures import quantile
from tests.chaos.takeovers.rounds import Findings, Rounds
from tests.chaos.takeovers.stage import DATABASE, staged
from tests.checker.compare import differences
from turnkeeper.settings import Settings

REPORT: Final = Path("build/chaos-takeover.json")
SURVIVORS: Final = 2
P50, P99, WORST = 8.0, 10.0, 15.0
"""Seconds from the strike to the new owner's first event, at most."""
MOST_MINUTES: Final = 20
"""After so many minutes the run ends, whatever it has shown."""


async def run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="turnkeeper-takeovers-") as folder:
        async with (
            asyncio.timeout(60 * MOST_MINUTES),
            staged(Path(folder), victims=args.victims, survivors=SURVIVORS) as stage,
        ):
            rounds = Rounds(stage, random.Random(args.seed))
            plan: list[tuple[str, int, Callable[[], Awaitable[None]]]] = [
                ("owners killed", args.kills, rounds.kill),
                ("owners frozen for 12 s", args.freezes, rounds.freeze),
                ("owners frozen for ever", args.for_ever, rounds.freeze_for_ever),
                ("database frozen for 12 s", args.database, rounds.freeze_database),
            ]
            for name, times, play in plan:
                for number in range(times):
                    await play()
                    print(f"chaos-takeover: {name}, round {number + 1} of {times}", flush=True)
                await rounds.settle()
            rounds.findings.complaints += await differences(stage.uri, DATABASE)
    report = _report(rounds.findings, seconds=time.monotonic() - began)
    _show(report)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"report: {REPORT}")
    return 1 if report["violations"] else 0


def _report(findings: Findings, *, seconds: float) -> dict[str, Any]:
    settings = Settings()
    samples = [seconds for kinds in findings.takeovers.values() for values in kinds.values() for seconds in values]
    return {
        "lease_seconds": settings.lease.total_seconds(),
        "outcome_patience_seconds": settings.outcome_patience.total_seconds(),
        "struck": findings.struck,
        "takeovers": _figures(samples),
        "takeovers_by_fault": {
            how: _figures([seconds for values in kinds.values() for seconds in values])
            for how, kinds in findings.takeovers.items()
        },
        "takeovers_by_kind": {
            how: {kind: _figures(values) for kind, values in kinds.items()} for how, kinds in findings.takeovers.items()
        },
        "calls_that_must_not_run_twice": findings.calls,
        "questions": findings.questions,
        "double_starts": findings.double_starts,
        "database_frozen": {
            "turns": findings.database_turns,
            "takeovers": findings.database_takeovers,
            "lapses": findings.database_lapses,
        },
        "violations": list(_violations(findings, samples)),
        "complaints": findings.complaints,
        "seconds": round(seconds, 1),
    }


def _figures(samples: list[float]) -> dict[str, Any]:
    worst = round(max(samples), 2) if samples else None
    return {"count": len(samples), "p50": quantile(samples, 0.5), "p99": quantile(samples, 0.99), "worst": worst}


def _violations(findings: Findings, samples: list[float]) -> Iterator[str]:
    """Yields each limit that was missed."""
    figures = _figures(samples)
    for name, limit in (("p50", P50), ("p99", P99), ("worst", WORST)):
        if figures[name] is not None and figures[name] > limit:
            yield f"the {name} of the take-overs is {figures[name]} s; the limit is {limit:g} s"
    if questions := findings.questions.get("frozen", 0) + findings.questions.get("database", 0):
        yield f"{questions} questions to people, although the owners went on"
    for how in ("killed", "frozen for ever"):
        if findings.questions.get(how, 0) != findings.calls.get(how, 0):
            yield f"{findings.questions.get(how, 0)} questions for {findings.calls.get(how, 0)} calls ({how})"
    if findings.double_starts:
        yield f"{findings.double_starts} calls were started twice"
    if findings.database_takeovers or findings.database_lapses:
        yield f"{findings.database_takeovers} take-overs and {findings.database_lapses} lapses by a frozen database"
    yield from findings.complaints


def _show(report: dict[str, Any]) -> None:
    print(f"lease {report['lease_seconds']:g} s; struck: {report['struck']}; {report['seconds']} s in all")
    for how, figures in {**report["takeovers_by_fault"], "all": report["takeovers"]}.items():
        print(f"take-overs, {how:16} {figures}")
    print(f"calls that must not run twice: {report['calls_that_must_not_run_twice']}")
    print(f"questions: {report['questions']}; double starts: {report['double_starts']}")
    print(f"database frozen: {report['database_frozen']}")
    for violation in report["violations"][:20]:
        print(f"  {violation}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.takeovers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m tests.chaos.takeovers --kills 2 --freezes 2 --for-ever 0 --database 0",
    )
    parser.add_argument("--victims", type=int, default=5, help="owners that are struck at a time [5]")
    parser.add_argument("--kills", type=int, default=10, help="rounds of killed owners [10]")
    parser.add_argument("--freezes", type=int, default=10, help="rounds of owners frozen for 12 s [10]")
    parser.add_argument("--for-ever", type=int, default=1, help="rounds of owners frozen for ever [1]")
    parser.add_argument("--database", type=int, default=2, help="times that the database is frozen for 12 s [2]")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the strikes [1]")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
