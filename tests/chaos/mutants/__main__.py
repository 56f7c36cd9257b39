"""`make chaos-mutants`: checks that every broken version of the service is caught. Exit 1 if one is not."""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import harness
from tests.chaos.mutants import crowded, decisions, lost_owners, tool_servers, unreplicated
from tests.chaos.mutants.annotations import read_only_by_its_own_words
from tests.chaos.mutants.deposed import read_from_a_deposed_primary
from tests.chaos.mutants.operators import in_others_sessions
from tests.chaos.mutants.patches import PATCHES
from tests.chaos.mutants.scenes import Scene, both_approved_at_once, claimed_late, struck, timed_out, unsure_commit
from tests.chaos.mutants.two_tenants import beside_each_other
from tests.chaos.points.script import SCRIPT
from tests.chaos.points.stage import SERVICE, Stage
from tests.test_tools import ToolControl
from turnkeeper.store.embedded import EmbeddedMongo

REPORT = Path("build/chaos-mutants.json")
BROKEN = "tests.chaos.mutants.serve"

SCENES: Mapping[str, Scene] = {
    "two-step-numbering": struck("step.after_first_write", "kill", passages=(2,)),
    "write-concern-1": unreplicated.once,
    "no-fence": struck("turn.model.after_answer", "stop"),
    "fence-read-not-written": struck("step.before_first_write", "stop", passages=(2, 3)),
    "state-only-filter": both_approved_at_once,
    "unknown-is-aborted": unsure_commit,
    "result-before-commit": struck("step.before_commit", "kill"),
    "loser-acknowledged": both_approved_at_once,
    "attempt-in-memory": struck("turn.model.first_delta", "kill"),
    "duplicate-without-reread": unreplicated.twice,
    "tool-retried": struck("turn.tool.after_effect", "kill"),
    "timeout-is-known": timed_out,
    "claim-given-up": claimed_late,
    "lapse-is-loss": lost_owners.owner_behind_a_frozen_database,
    "question-at-once": lost_owners.owner_stopped_in_mid_call,
    "refusal-on-a-lagging-read": read_from_a_deposed_primary,
    "finished-calls-only": crowded.more_than_the_limit,
    "refusal-without-retry-info": crowded.more_than_the_limit,
    "deadline-ignored-in-the-queue": crowded.given_up_in_the_queue,
    "no-tenant-filter": beside_each_other,
    "feed-forgets-the-tenant": beside_each_other,
    "session-cache-forgets-the-tenant": beside_each_other,
    "record-beside-its-effect": in_others_sessions,
    "operators-name-lost": in_others_sessions,
    "operator-of-any-tenant": in_others_sessions,
    "quorum-by-vote": decisions.raced,
    "requester-through-delegation": decisions.raced,
    "edit-keeps-votes": decisions.raced,
    "error-means-auto": decisions.unreadable_condition,
    "snapshot-before-subscription": decisions.asked_while_a_watcher_begins,
    "not-started-is-no-promise": tool_servers.stopped_before_the_call_left,
    "unavailable-is-never-left": tool_servers.answer_lost,
    "annotation-that-loosens": read_only_by_its_own_words,
}
"""Each mutant, and where it shows."""


async def run(args: argparse.Namespace) -> int:
    chosen = [name for name in SCENES if args.only in name]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="turnkeeper-mutants-") as folder:
        tool_control = ToolControl(Path(folder))
        tool_control.install()
        async with (
            EmbeddedMongo(Path(folder) / "database", test_commands=True) as uri,
            harness.scripted(SCRIPT) as model,
        ):
            stage = Stage(mongo_uri=uri, database="mutants", model=model, tool_control=tool_control)
            for name in chosen:
                rows.append(await _try(stage, name))
                _progress(rows[-1])
    return _show_report(rows)


async def _try(stage: Stage, name: str) -> dict[str, Any]:
    """Plays a scene with the service itself, then with its broken version. Returns a row of the report."""
    began = time.monotonic()
    sound = await _played(stage, name, f"{name}-sound", SERVICE)
    complaints = await _played(stage, name, name, (BROKEN, name))
    seconds = round(time.monotonic() - began, 1)
    return {
        "mutant": name,
        "said": (PATCHES[name].__doc__ or "").strip(),
        "caught": any(not complaint.startswith("not struck") for complaint in complaints),
        "complaints": list(complaints)[:5],
        "complaints_about_the_service_itself": list(sound),
        "seconds": seconds,
    }


async def _played(stage: Stage, name: str, label: str, program: tuple[str, ...]) -> Sequence[str]:
    with tempfile.TemporaryDirectory(prefix="turnkeeper-mutant-") as folder:
        tool_control = ToolControl(Path(folder))
        tool_control.install()
        return await SCENES[name](stage.in_database(label, program=program, tool_control=tool_control))


def _progress(row: Mapping[str, Any]) -> None:
    outcome = "caught" if row["caught"] else "NOT CAUGHT"
    print(f"chaos-mutants: {row['mutant']:26} {outcome} ({row['seconds']} s)", flush=True)
    for complaint in (*row["complaints"][:1], *row["complaints_about_the_service_itself"]):
        print(f"  {complaint[:200]}", flush=True)


def _show_report(rows: Sequence[Mapping[str, Any]]) -> int:
    missed = [row["mutant"] for row in rows if not row["caught"]]
    unsound = [row["mutant"] for row in rows if row["complaints_about_the_service_itself"]]
    report = {
        "mutants": len(rows),
        "caught": len(rows) - len(missed),
        "missed": missed,
        "scenes_that_complain_about_the_service_itself": unsound,
        "seconds": sum(row["seconds"] for row in rows),
        "rows": list(rows),
    }
    print(f"{report['caught']} of {len(rows)} mutants caught in {report['seconds']:.0f} s")
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"report: {REPORT}")
    return 1 if missed or unsound or not rows else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.mutants",
        description=__doc__,
        epilog="example: python -m tests.chaos.mutants --only fence",
    )
    parser.add_argument("--only", default="", help="mutants whose name has this in it [all]")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
