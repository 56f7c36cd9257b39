"""The report of a run: its figures, and its failures."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

FULL_MINUTES: Final = 5.0
LEAST: Final[Mapping[str, int]] = {
    "acknowledged_turns": 300,
    "decided_approvals": 100,
    "takeovers": 50,
    "faults": 100,
    "foreign_reads": 100,
    "effects_of_tool_servers": 100,
    "next_messages": 20,
}
"""The least figures of a run of FULL_MINUTES; a shorter run needs its share."""
LEAST_KINDS: Final = 8
TAKEOVER_MARGIN: Final = 10.0
"""Seconds on top of the lease within which 99 of 100 lost turns must go on at another server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The options of a run. One of FULL_MINUTES tries every kind; a shorter one may end before a kind's turn comes."""

    seed: int
    minutes: float
    lease: float
    kinds: Sequence[str]

    def least(self, name: str) -> int:
        """Returns the least figure for a run of this length; a longer run needs no more than a full one."""
        return max(1, round(LEAST[name] * min(1.0, self.minutes / FULL_MINUTES)))


def report(
    run: Run, *, faults: Mapping[str, Mapping[str, int]], checked: Mapping[str, Any], trouble: Sequence[str]
) -> dict[str, Any]:
    """Returns the report as it is stored. `trouble`: problems of the run itself; its `failures` are why it failed."""
    confirmed = sum(row["confirmed"] for row in faults.values())
    figures = {**checked, "faults": confirmed, "kinds": sum(row["confirmed"] > 0 for row in faults.values())}
    failures = [*trouble, *_failures(run, faults=faults, figures=figures)]
    every = {kind: {"tried": 0, "confirmed": 0} for kind in run.kinds} | {
        kind: dict(row) for kind, row in faults.items()
    }
    return {
        "seed": run.seed,
        "minutes": run.minutes,
        "lease_seconds": run.lease,
        "passed": not failures,
        "failures": failures,
        "least": {name: run.least(name) for name in LEAST},
        "scaled": run.minutes < FULL_MINUTES,
        "faults_by_kind": dict(sorted(every.items())),
        **figures,
    }


def _failures(run: Run, *, faults: Mapping[str, Mapping[str, int]], figures: Mapping[str, Any]) -> list[str]:
    failures = [
        f"{promise}: {len(lines)} violations, such as: {lines[0]}"
        for promise, lines in sorted(figures.get("violations", {}).items())
        if lines
    ]
    failures += [f"{name}: not checked" for name in figures.get("not_checked", ())]
    failures += [
        f"{name} is {figures.get(name, 0)}; at least {run.least(name)} are needed"
        for name in LEAST
        if figures.get(name, 0) < run.least(name)
    ]
    for kind in run.kinds:
        row = faults.get(kind, {"tried": 0, "confirmed": 0})
        if row["tried"] and not row["confirmed"]:
            failures.append(f"{kind} never took effect, tried {row['tried']} times")
        elif not row["tried"] and run.minutes >= FULL_MINUTES:
            failures.append(f"{kind} was never tried")
    if figures["kinds"] < min(LEAST_KINDS, len(run.kinds)):
        failures.append(f"only {figures['kinds']} kinds of fault took effect")
    p99 = figures.get("takeover_seconds", {}).get("p99")
    if p99 is not None and p99 > run.lease + TAKEOVER_MARGIN:
        failures.append(f"take-over p99 is {p99} s; the limit is {run.lease + TAKEOVER_MARGIN:g} s")
    return failures


def table(report: Mapping[str, Any]) -> str:
    """Returns the report as a table for a terminal."""
    rows = [(kind, row["confirmed"], row["tried"]) for kind, row in report["faults_by_kind"].items()]
    width = max([len(row[0]) for row in rows], default=10)
    lines = ["", f"  {'fault':{width}}  took effect  tried"]
    lines += [f"  {kind:{width}}  {confirmed:11}  {tried:5}" for kind, confirmed, tried in rows]
    lines += ["", *(_wrapped(f"  {name:28}  ", _shown(report[name])) for name in _FIGURES if name in report), ""]
    scaled = " (scaled to the shorter run)" if report["scaled"] else ""
    demanded = ", ".join(f"{least} {name.replace('_', ' ')}" for name, least in report["least"].items())
    lines.append(_wrapped(f"  demanded{scaled}: ", demanded, indent=4))
    lines += [f"  FAILED: {failure}" for failure in report["failures"]]
    outcome = "every promise held" if report["passed"] else "FAILED"
    lines.append(f"chaos: seed {report['seed']}, {report['minutes']:g} min: {outcome}")
    return "\n".join(lines)


_FIGURES: Final = (
    "faults",
    "kinds",
    "acks",
    "acknowledged_turns",
    "turns_of_floods",
    "refusals",
    "sessions",
    "ids_of_two_sessions",
    "foreign_reads",
    "foreign_reads_tried",
    "foreign_reads_leaked",
    "turns",
    "waiting",
    "events",
    "decided_approvals",
    "effects",
    "effects_by_source",
    "effects_cut_off",
    "reconciled",
    "next_messages",
    "stdio_servers",
    "takeovers",
    "takeover_seconds",
    "unknown_outcomes",
    "longest_write_gap_seconds",
    "longest_unwritable_seconds",
    "violations_by_promise",
    "settled_seconds",
)


def _wrapped(label: str, text: str, *, indent: int = 32) -> str:
    """Returns the text after its label, in lines of at most 80 columns."""
    return textwrap.fill(text, 80, initial_indent=label, subsequent_indent=" " * indent, break_on_hyphens=False)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "-"
    return str(value)
