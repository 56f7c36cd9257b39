"""The report of a run: figures, and what they fall short of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

FULL_MINUTES: Final = 5.0
LEAST: Final[Mapping[str, int]] = {
    "acknowledged_turns": 300,
    "decided_approvals": 100,
    "takeovers": 50,
    "faults": 100,
}
"""What a run of FULL_MINUTES must have seen for its verdict to mean anything; a shorter one its share."""
LEAST_KINDS: Final = 8
TAKEOVER_MARGIN: Final = 10.0
"""Seconds on top of the lease within which 99 of 100 lost turns must go on elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was asked for."""

    seed: int
    minutes: float
    lease: float
    kinds: Sequence[str]

    def least(self, name: str) -> int:
        """What LEAST demands, for this many minutes; no more is asked of a longer run."""
        return max(1, round(LEAST[name] * min(1.0, self.minutes / FULL_MINUTES)))


def report(
    run: Run, *, faults: Mapping[str, Mapping[str, int]], checked: Mapping[str, Any], trouble: Sequence[str]
) -> dict[str, Any]:
    """As it is stored. `trouble` is what went wrong with the run itself; `failures` says why it failed, if it did."""
    confirmed = sum(row["confirmed"] for row in faults.values())
    figures = {**checked, "faults": confirmed, "kinds": sum(row["confirmed"] > 0 for row in faults.values())}
    failures = [*trouble, *_failures(run, faults=faults, figures=figures)]
    return {
        "seed": run.seed,
        "minutes": run.minutes,
        "lease_seconds": run.lease,
        "passed": not failures,
        "failures": failures,
        "least": {name: run.least(name) for name in LEAST},
        "scaled": run.minutes < FULL_MINUTES,
        "faults_by_kind": dict(faults),
        **figures,
    }


def _failures(run: Run, *, faults: Mapping[str, Mapping[str, int]], figures: Mapping[str, Any]) -> list[str]:
    found = [
        f"{promise}: {len(lines)} violations, such as: {lines[0]}"
        for promise, lines in sorted(figures.get("violations", {}).items())
        if lines
    ]
    found += [f"{name}: nothing to look at" for name in figures.get("not_checked", ())]
    found += [
        f"{name} is {figures.get(name, 0)}; at least {run.least(name)} are needed"
        for name in LEAST
        if figures.get(name, 0) < run.least(name)
    ]
    idle = [kind for kind in run.kinds if not faults.get(kind, {}).get("confirmed")]
    found += [f"{kind} never took effect" for kind in idle]
    if figures["kinds"] < min(LEAST_KINDS, len(run.kinds)):
        found.append(f"only {figures['kinds']} kinds of fault took effect")
    p99 = figures.get("takeover_seconds", {}).get("p99")
    if p99 is not None and p99 > run.lease + TAKEOVER_MARGIN:
        found.append(f"take-over p99 is {p99} s; the limit is {run.lease + TAKEOVER_MARGIN:g} s")
    return found


def table(told: Mapping[str, Any]) -> str:
    """For a terminal."""
    rows = [(kind, row["confirmed"], row["tried"]) for kind, row in told["faults_by_kind"].items()]
    width = max([len(row[0]) for row in rows], default=10)
    lines = ["", f"  {'fault':{width}}  took effect  tried"]
    lines += [f"  {kind:{width}}  {confirmed:11}  {tried:5}" for kind, confirmed, tried in rows]
    lines += ["", *(f"  {name:28}  {_shown(told[name])}" for name in _FIGURES if name in told), ""]
    scaled = " (scaled to the shorter run)" if told["scaled"] else ""
    demanded = ", ".join(f"{least} {name.replace('_', ' ')}" for name, least in told["least"].items())
    lines.append(f"  demanded{scaled}: {demanded}")
    lines += [f"  FAILED: {failure}" for failure in told["failures"]]
    verdict = "every promise held" if told["passed"] else "FAILED"
    lines.append(f"chaos: seed {told['seed']}, {told['minutes']:g} min: {verdict}")
    return "\n".join(lines)


_FIGURES: Final = (
    "faults",
    "kinds",
    "acks",
    "acknowledged_turns",
    "turns",
    "waiting",
    "events",
    "decided_approvals",
    "effects",
    "takeovers",
    "takeover_seconds",
    "unknown_outcomes",
    "longest_write_gap_seconds",
    "longest_unwritable_seconds",
    "violations_by_promise",
    "settled_seconds",
)


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items()) or "-"
    return str(value)
