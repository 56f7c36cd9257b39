"""`make chaos-points`: kills and freezes a server at every fault point. Exit 1 if anything is lost or done twice."""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import harness
from tests.chaos.figures import quantile
from tests.chaos.points.script import SCRIPT, Plan, plans
from tests.chaos.points.stage import LEASE, Stage
from tests.chaos.points.trial import KINDS, Finding, changed, play
from tests.checker.compare import differences
from tests.test_tools import ToolControl
from turnkeeper.store.embedded import EmbeddedMongo

REPORT = Path("build/chaos-points.json")
DATABASE = "points"


async def run(args: argparse.Namespace) -> int:
    """Runs every trial and writes the report. Returns the exit status."""
    chosen = plans(times=args.times, only=args.only)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="turnkeeper-points-") as folder:
        tool_control = ToolControl(Path(folder))
        tool_control.install()
        async with (
            EmbeddedMongo(Path(folder) / "database") as uri,
            harness.scripted(SCRIPT) as model,
        ):
            stage = Stage(mongo_uri=uri, database=DATABASE, model=model, tool_control=tool_control)
            findings = await _play_all(stage, chosen, at_once=args.at_once)
            broken = await differences(uri, DATABASE)
    return _show_report(_report(findings, broken, seconds=time.monotonic() - began))


async def _play_all(stage: Stage, chosen: Sequence[Plan], *, at_once: int) -> list[Finding]:
    """Runs the trials, some at a time. In the end, checks for writes of thawed servers into turns that had ended."""
    began, findings = time.monotonic(), list[Finding]()
    room = asyncio.Semaphore(at_once)

    async def one(keeper: harness.Stubs, number: int) -> None:
        plan = chosen[number]
        async with room:
            finding = await play(stage, keeper, plan, name=f"{number}-{plan.point}")
        findings.append(finding)
        _progress(finding, len(findings), len(chosen), time.monotonic() - began)

    async with stage.server() as server, harness.connect(server.address) as keeper:
        async with asyncio.TaskGroup() as group:
            for number in range(len(chosen)):
                group.create_task(one(keeper, number))
        for finding in findings:
            finding.complaints += await changed(keeper, finding)
    return findings


def _progress(finding: Finding, done: int, of: int, seconds: float) -> None:
    for complaint in finding.complaints:
        print(f"  {finding.plan.armed}: {complaint}", flush=True)
    if done % 10 == 0 or done == of:
        print(f"chaos-points: {done} of {of} trials, {seconds:.0f} s", flush=True)


def _report(findings: Sequence[Finding], broken: Sequence[str], *, seconds: float) -> dict[str, Any]:
    points: dict[str, Counter[str]] = {}
    complaints: list[str] = []
    for finding in findings:
        count = points.setdefault(finding.plan.point, Counter())
        count["trials"] += 1
        count["struck"] += bool(finding.struck_at)
        count[finding.plan.action] += bool(finding.struck_at)
        count["unknown_outcomes"] += finding.unknown
        complaints += [f"{finding.plan.armed}: {complaint}" for complaint in finding.complaints]
    late = sorted(finding.takeover for finding in findings if finding.takeover is not None)
    return {
        "seconds": round(seconds, 1),
        "lease_seconds": LEASE,
        "trials": len(findings),
        "acknowledged": sum(finding.acknowledged for finding in findings),
        "violations": {kind: sum(kind in complaint for complaint in complaints) for kind in KINDS},
        "documents_that_differ_from_their_log": list(broken),
        "takeovers": len(late),
        "takeover_seconds": {"p50": quantile(late, 0.5), "p99": quantile(late, 0.99)},
        "points": {name: dict(count) for name, count in points.items()},
        "complaints": complaints,
    }


def _show_report(report: dict[str, Any]) -> int:
    print(f"\n{'point':30} {'trials':>6} {'killed':>6} {'frozen':>6} {'unknown':>7}")
    for name, count in report["points"].items():
        row = (count["trials"], count.get("kill", 0), count.get("stop", 0), count["unknown_outcomes"])
        print(f"{name:30} {row[0]:6} {row[1]:6} {row[2]:6} {row[3]:7}")
    late = report["takeover_seconds"]
    print(f"\n{report['trials']} trials, {report['acknowledged']} acknowledgements, {report['seconds']:.0f} s")
    print(f"take-overs: {report['takeovers']}, p50 {late['p50']} s, p99 {late['p99']} s (lease {LEASE:g} s)")
    wrong = {**report["violations"], "documents": len(report["documents_that_differ_from_their_log"])}
    print(", ".join(f"{kind}: {count}" for kind, count in wrong.items()))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"report: {REPORT}")
    return 1 if any(wrong.values()) else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.points",
        description=__doc__,
        epilog="example: python -m tests.chaos.points --only turn.tool --times 4",
    )
    parser.add_argument("--times", type=int, default=20, help="trials of each point [20]")
    parser.add_argument("--only", default="", help="points whose name contains this [all]")
    parser.add_argument("--at-once", type=int, default=4, help="trials at once [4]")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
