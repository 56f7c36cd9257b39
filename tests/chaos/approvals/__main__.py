"""`make chaos-approvals`: approvals raced by all who try to decide, while servers are killed.

Each approval waits for one or two of three persons. They, a deputy with the authority of one of them, the requester,
a friend with the requester's authority, and one of no group try to decide it at about its expiry, and the requester
cancels the turn then. Exit status 0: every promise held, and enough of each came out; 1: not.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.chaos import cluster as clusters
from tests.chaos import tenants, tools
from tests.chaos.approvals import racers
from tests.chaos.approvals.judgement import figures, judge
from tests.chaos.approvals.plan import races
from tests.chaos.checker import keep_evidence
from tests.chaos.cluster import DATABASE, Plan
from tests.chaos.history import Finding, History
from tests.chaos.nemesis import Nemesis
from tests.chaos.reading import read
from tests.chaos.strikes import Faults, Strike

HERE: Final = Path(__file__).parent
REPORT: Final = Path("build/chaos-approvals.json")
FOLDER: Final = Path("build/chaos/approvals")
KILLS: Final = "server-kill"
SETTLE: Final = 60.0
SHOWN: Final = 20
DEMANDED: Final[Mapping[str, float]] = {
    "raced": 1.0,
    "decided_by_two_of_three": 0.1,
    "ended_within_a_second_of_the_expiry": 0.1,
    "rejected": 0.01,
    "expired": 0.01,
    "withdrawn": 0.01,
    "votes_of_a_delegate": 0.05,
    "edited": 0.01,
    "kills": 0.01,
}
"""What must come out at least, as a share of the approvals that are raced."""


async def run(args: argparse.Namespace) -> int:
    began, folder = time.monotonic(), args.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tenants.write(folder / tenants.FOLDER)
    plan = Plan(
        logs=folder,
        agents=HERE / "agents.toml",
        script=HERE.parent / "model.toml",
        variables=tools.variables(folder),
        clocks=False,
        flags=("--outcome-patience", "2s", *tenants.flags(folder / tenants.FOLDER)),
    )
    faults = Faults(folder / "faults.jsonl")
    async with clusters.running(plan) as cluster:
        _say(f"seed {args.seed}, {args.approvals} approvals; database and servers are up")
        nemesis = Nemesis(cluster, faults, seed=args.seed, kinds=[KILLS], on_strike=_show_strike)
        planned = races(args.approvals, seed=args.seed)
        identity = folder / tenants.FOLDER
        async with nemesis.at_work():
            await racers.run(planned, addresses=cluster.addresses, identity=identity, out=folder)
        load = {"load_average": round(os.getloadavg()[1], 1), "cores": os.cpu_count() or 0}
        history = await read(cluster.database.uri, DATABASE, folder, faults=folder / "faults.jsonl", settle=SETTLE)
    findings = judge(history)
    keep_evidence(history, findings, folder / "evidence.txt")
    counted = {
        "seed": args.seed,
        "kills": faults.tally().get(KILLS, {}).get("confirmed", 0),
        "seconds": round(time.monotonic() - began),
        **load,
    }
    report = _report(history, findings, counted, approvals=args.approvals)
    args.report.parent.mkdir(parents=True, exist_ok=True)
    args.report.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _show(report, args.report)
    return 0 if report["passed"] else 1


def _report(
    history: History, findings: Mapping[str, Finding], counted: Mapping[str, Any], *, approvals: int
) -> dict[str, Any]:
    came_out = figures(history)
    outcomes = came_out["outcomes"]
    reached = {
        **came_out,
        **counted,
        "ended_within_a_second_of_the_expiry": came_out["decided_within_a_second_of_the_expiry"]
        + came_out["expired_within_a_second_of_the_expiry"],
        **{state: outcomes.get(state.upper(), 0) for state in ("rejected", "expired", "withdrawn")},
    }
    missed = [
        f"{name}: {reached[name]} of at least {least:.0f}"
        for name, share in DEMANDED.items()
        if reached[name] < (least := max(1.0, share * approvals))
    ]
    unseen = [name for name, finding in findings.items() if not finding.checked]
    broken = {name: finding.violations for name, finding in findings.items() if finding.violations}
    return {
        **reached,
        "checked": {name: finding.checked for name, finding in findings.items()},
        "violations_by_promise": {name: len(lines) for name, lines in broken.items()},
        "violations": {name: lines[:SHOWN] for name, lines in broken.items()},
        "not_checked": unseen,
        "missed": missed,
        "passed": not (broken or unseen or missed),
    }


def _show(report: Mapping[str, Any], file: Path) -> None:
    for name, value in report.items():
        if isinstance(value, int | float) and name != "passed":
            print(f"{name.replace('_', ' '):42} {value:,}")
    print(f"{'outcomes':42} {', '.join(f'{count} {state}' for state, count in report['outcomes'].items())}")
    for person, reasons in report["refused"].items():
        print(f"refused to {person}: {', '.join(f'{count} {reason}' for reason, count in reasons.items())}")
    for name, count in report["checked"].items():
        lines = report["violations"].get(name, ())
        number = report["violations_by_promise"].get(name)
        print(f"{name:>11}: {f'{number} violations' if number else 'held' if count else 'not checked'} ({count:,})")
        for line in lines[:3]:
            print(f"             {line}")
    for line in report["missed"]:
        print(f"too few, {line}")
    print(f"report: {file}")


def _show_strike(strike: Strike) -> None:
    _say(f"{strike.target}: {'; '.join(strike.evidence) if strike.confirmed else f'not confirmed {strike.error}'}")


def _say(words: str) -> None:
    print(textwrap.shorten(f"chaos-approvals: {words}", 80), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.approvals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m tests.chaos.approvals --approvals 60\n"
        '  make chaos-approvals CHAOS_ARGS="--seed 2"',
    )
    parser.add_argument("--seed", type=int, default=1, help="decides races and kills [%(default)s]")
    parser.add_argument("--approvals", type=int, default=1000, metavar="N", help="approvals to race [%(default)s]")
    parser.add_argument("--report", type=Path, default=REPORT, metavar="FILE", help="[%(default)s]")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, metavar="DIR", help="for logs and records; emptied first [%(default)s]"
    )
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
