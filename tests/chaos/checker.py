"""`python -m tests.chaos.checker --uri URI --database DB --dir DIR --report FILE [--faults FILE]` checks every promise.

It reads the records of clients and tools in DIR, the nemesis' file, and the database; never a server or its counters.
Exit status 0: every promise held; 1: one was broken, or could not be checked; 2: the run cannot be read.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pymongo.errors import PyMongoError

from tests.chaos import tenants
from tests.chaos.history import Finding, History
from tests.chaos.promises.answers import i3_what_was_acknowledged_is_there, i8_a_request_has_one_effect
from tests.chaos.promises.decisions import i6_an_approval_is_left_once, i7_expired_is_not_decided
from tests.chaos.promises.defects import no_answer_is_a_defect
from tests.chaos.promises.effects import (
    i5_an_irreversible_tool_starts_once,
    i12_nothing_starts_after_a_cancel,
    i14_what_was_approved_is_what_ran,
)
from tests.chaos.promises.ends import (
    every_turn_ends_or_waits,
    i11_documents_equal_the_fold_of_the_log,
    i15_clients_that_left_change_nothing,
)
from tests.chaos.promises.order import i1_numbers_have_no_gap, i2_readers_are_given_the_log, i4_fences_never_fall
from tests.chaos.promises.outcomes import outcomes_are_what_happened
from tests.chaos.promises.refusals import refusals_say_when_to_come_back
from tests.chaos.promises.sessions import the_next_message_works
from tests.chaos.promises.tenants import i13_no_tenant_sees_another
from tests.chaos.promises.texts import (
    i10_partial_text_is_never_history,
    i16_history_can_be_sent_to_a_model,
    texts_of_readers_are_whole,
)
from tests.chaos.promises.votes import votes_are_of_those_who_may
from tests.chaos.reading import read
from tests.chaos.summary import summary

PROMISES: Mapping[str, Callable[[History], Finding]] = {
    "I1": i1_numbers_have_no_gap,
    "I2": i2_readers_are_given_the_log,
    "I3": i3_what_was_acknowledged_is_there,
    "I4": i4_fences_never_fall,
    "I5": i5_an_irreversible_tool_starts_once,
    "I6": i6_an_approval_is_left_once,
    "I7": i7_expired_is_not_decided,
    "I8": i8_a_request_has_one_effect,
    "I10": i10_partial_text_is_never_history,
    "I11": i11_documents_equal_the_fold_of_the_log,
    "I12": i12_nothing_starts_after_a_cancel,
    "I13": i13_no_tenant_sees_another,
    "I14": i14_what_was_approved_is_what_ran,
    "I15": i15_clients_that_left_change_nothing,
    "I16": i16_history_can_be_sent_to_a_model,
    "defects": no_answer_is_a_defect,
    "outcomes": outcomes_are_what_happened,
    "refusals": refusals_say_when_to_come_back,
    "sessions": the_next_message_works,
    "texts": texts_of_readers_are_whole,
    "turns": every_turn_ends_or_waits,
    "votes": votes_are_of_those_who_may,
}
"""The promises that are judged; the last: defects, ends of calls, refusals, sessions, texts, ends of turns, votes."""

SETTLE = 60.0
EVIDENCE = "evidence.txt"


def judge(history: History) -> Mapping[str, Finding]:
    """Checks every promise. Returns the findings by the promises' names."""
    return {name: promise(history) for name, promise in PROMISES.items()}


def keep_evidence(history: History, findings: Mapping[str, Finding], file: Path) -> None:
    """Writes the whole logs of the sessions that a violation names: the database is gone after the run."""
    violations = "\n".join(line for finding in findings.values() for line in finding.violations)
    named = [session for session in history.logs if tenants.id_of(session) in violations]
    turns = {entry.turn: session for session, log in history.logs.items() for entry in log if entry.turn}
    named += [session for turn, session in turns.items() if turn in violations and session not in named]
    with file.open("w", encoding="utf-8") as kept:
        for session in named:
            for entry in history.logs[session]:
                kept.write(f"--- {session} {entry.sequence} {entry.kind} fence {entry.fence}\n{entry.event}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.checker", description="Checks every promise of a run.")
    parser.add_argument("--uri", required=True, help="the replica set, healed")
    parser.add_argument("--database", required=True)
    parser.add_argument("--dir", type=Path, required=True, help="the folder with the records of clients and tools")
    parser.add_argument("--report", type=Path, required=True, metavar="FILE", help="where to write the report, JSON")
    parser.add_argument("--faults", type=Path, metavar="FILE", help="the faults of the nemesis, JSON lines")
    parser.add_argument("--settle", type=float, default=SETTLE, help="seconds to wait for turns to come to rest")
    arguments = parser.parse_args()
    reading = read(arguments.uri, arguments.database, arguments.dir, faults=arguments.faults, settle=arguments.settle)
    try:
        history = asyncio.run(reading)
    except (OSError, ValueError, KeyError, PyMongoError) as error:
        print(f"the run cannot be read: {error!r}", file=sys.stderr)
        return 2
    findings = judge(history)
    report = summary(history, findings)
    arguments.report.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    keep_evidence(history, findings, arguments.dir / EVIDENCE)
    for name, finding in findings.items():
        outcome = f"{len(finding.violations)} violations" if finding.violations else "held"
        print(f"{name:>8}: {outcome if finding.checked else 'not checked'} ({finding.checked} checks)")
        for line in finding.violations[:3]:
            print(f"        {line}")
    return int(bool(report["violations"] or report["not_checked"]))


if __name__ == "__main__":
    sys.exit(main())
