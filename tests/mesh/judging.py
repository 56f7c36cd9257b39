"""Judges a run: by the records of its callers, Envoy's counters and the log in the database."""

import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from tests.chaos.history import History, Prompt
from tests.chaos.promises.tenants import foreign_reads, i13_no_tenant_sees_another
from tests.chaos.reading import PROMPTS, lines, logs_of, tries_of
from tests.chaos.record import CALLS
from tests.checker.compare import differences
from tests.mesh import call_records
from tests.mesh.answers import TIMES
from tests.mesh.faults import DATABASE_FROZEN, DRAINED, FROZEN, KILLED, MUTE
from tests.mesh.findings import AT_LEAST, Fault, Findings
from tests.mesh.latency import percentile
from tests.mesh.phases import ANSWERS, FREEZE, KILLS, RESTARTS, SILENCE
from tests.mesh.phases import DATABASE as DATABASE_PHASE
from tests.mesh.stage import DATABASE, Stage
from tests.mesh.takeovers import MODEL, TOOL, Takeover, never_taken_over, superseded_between, takeovers

OUT_WITHIN: Final = 5.0
MEDIAN: Final = 8.0
WORST: Final = 15.0
KINDS: Final = (
    "UNIMPLEMENTED",
    "AGENT_NOT_AVAILABLE",
    "ADMISSION_FROZEN",
    "RATE_LIMIT_EXCEEDED",
    "SERVICE_UNAVAILABLE",
)
FAULTS: Final[Mapping[str, str]] = {
    DRAINED: RESTARTS,
    KILLED: KILLS,
    FROZEN: FREEZE,
    MUTE: SILENCE,
    DATABASE_FROZEN: DATABASE_PHASE,
}
"""Kinds of faults, and the phases that make them."""
LOST: Final = (KILLED, FROZEN, MUTE)
_DATABASE_AFTER: Final = 20.0
"""Seconds after a frozen database goes on in which a take-over would be its fault."""


async def judge(findings: Findings, stage: Stage, *, phases: Collection[str], least: int) -> None:
    """Adds promises and figures to the findings. `least`: turns that must have been taken over, if any is to be.

    `phases`: the names of those that were run; of the others nothing is expected.
    """
    counts, recorded = call_records.read(stage.folder)
    _calls(findings, counts, recorded)
    documents = await stage.mongo[DATABASE].events.find({}, sort=[("seq", 1)]).to_list()
    logs = logs_of(documents)
    _foreign(findings, stage, logs, recorded)
    broken = await differences(stage.database.uri, DATABASE)
    findings.complaints += broken[:10]
    findings.expect("documents are the fold of their log", f"{len(broken)} differ", held=not broken)
    await _ejections(findings, stage, KINDS if ANSWERS in phases else ())
    _faults(findings, [kind for kind, phase in FAULTS.items() if phase in phases])
    if any(FAULTS[kind] in phases for kind in LOST):
        _takeovers(findings, logs, least)
    _database(findings, logs)


def _calls(findings: Findings, counts: Any, recorded: Sequence[Any]) -> None:
    of_kind = Counter(line["what"] for line in recorded)
    repeated = Counter(findings.phase_of(line["wall"]) for line in recorded if line["what"] == call_records.REPEATED)
    failed, inexact = of_kind[call_records.FAILED], of_kind[call_records.INEXACT]
    findings.figures["calls"] = {**counts, "failed_unary_calls": failed, "inexact_streams": inexact}
    findings.figures["calls"]["repeated_by_callers"] = dict(repeated)
    findings.complaints += [
        f"{findings.phase_of(line['wall'])}: {line['call']}: {line['error']}"
        for line in recorded
        if line["what"] != call_records.REPEATED
    ]
    findings.expect("unary calls that failed", f"{failed} of {counts.get('unary', 0):,}", held=not failed)
    findings.expect("streams that were not exact", f"{inexact} of {counts.get('streams', 0):,}", held=not inexact)
    held = all(counts.get(name, 0) > 0 for name in ("unary", "streams", "turns"))
    findings.expect("callers had turns, streams and calls", f"{counts.get('turns', 0):,} turns", held=held)


def _foreign(findings: Findings, stage: Stage, logs: Any, recorded: Sequence[Any]) -> None:
    tries = tries_of(lines(stage.folder / CALLS))
    prompts = [Prompt(messages=line["messages"]) for line in lines(stage.folder / PROMPTS)]
    history = History(logs=logs, tries=tries, prompts=prompts)
    finding, probes = i13_no_tenant_sees_another(history), foreign_reads(history)
    leaked = [line for line in recorded if line["what"] == call_records.FOREIGN]
    findings.complaints += finding.violations[:10]
    findings.figures["foreign_reads"] = {**probes, "checks": finding.checked}
    measured = f"{len(finding.violations) + len(leaked)} in {probes['answered']} probes, {finding.checked:,} checks"
    findings.expect("foreign reads", measured, held=not finding.violations and not leaked and probes["answered"] > 0)


async def _ejections(findings: Findings, stage: Stage, kinds: Collection[str]) -> None:
    counted = await stage.envoy.ejections()
    ejected = sum(times for kind, times in counted.items() if kind != "would")
    findings.figures["ejections"] = {"by_answers": ejected, "would_have_been": counted["would"]}
    findings.figures["retries_by_envoy"] = await stage.envoy.retries()
    findings.expect("ejections by answers", f"{ejected}; counting them: {counted['would']}", held=ejected == 0)
    answered = findings.figures.get("answers", {})
    for kind in kinds:
        times = answered.get(kind, {}).get("answers", 0)
        findings.expect(f"answers {kind}", f"{times}, at least {TIMES}", held=times >= TIMES)


def _faults(findings: Findings, kinds: Collection[str]) -> None:
    faults = findings.faults
    if not kinds:
        return
    missing = [kind for kind in kinds if kind not in {fault.kind for fault in faults}]
    findings.expect("faults", f"{len(faults)}, without {missing}" if missing else len(faults), held=not missing)
    streams = min((fault.open.streams for fault in faults), default=0)
    calls = min((fault.open.calls for fault in faults), default=0)
    enough = streams >= AT_LEAST.streams and calls >= AT_LEAST.calls
    findings.expect("open at a fault, at least", f"{streams} streams, {calls} calls", held=enough)
    outs = [fault.out for fault in faults if fault.kind in (FROZEN, MUTE) and fault.out is not None]
    if outs:
        out = max(outs)
        findings.expect("a replica that never answers is out", f"after {out:.1f} s", held=out <= OUT_WITHIN)


def _takeovers(findings: Findings, logs: Any, least: int) -> None:
    taken_over = takeovers(logs, findings.faults)
    during = Counter(one.during for one in taken_over)
    findings.figures["takeovers"] = {
        "turns": len(taken_over),
        "during": dict(during),
        **{kind: figures_of([one for one in taken_over if one.kind == kind]) for kind in LOST},
    }
    findings.expect("turns taken over", f"{len(taken_over)}, at least {least}", held=len(taken_over) >= least)
    thirds = 3 * min(during[TOOL], during[MODEL]) >= len(taken_over)
    measured = f"{during[TOOL]} in a tool, {during[MODEL]} in the model"
    findings.expect("a third each in mid-tool and mid-model", measured, held=thirds and bool(taken_over))
    lost = never_taken_over(logs, findings.faults)
    findings.complaints += [f"turn {turn} of a lost owner neither went on nor ended" for turn in lost[:10]]
    findings.expect("turns of lost owners that never went on", len(lost), held=not lost)
    seconds = [one.seconds for one in taken_over] or [float("inf")]
    median, worst = statistics.median(seconds), max(seconds)
    findings.expect("take-over, median", f"{median:.1f} s, at most {MEDIAN:g}", held=median <= MEDIAN)
    findings.expect("take-over, worst", f"{worst:.1f} s, at most {WORST:g}", held=worst <= WORST)


def _database(findings: Findings, logs: Any) -> None:
    frozen = [fault for fault in findings.faults if fault.kind == DATABASE_FROZEN]
    if frozen:
        began = min(fault.began for fault in frozen)
        taken = superseded_between(logs, began, _ended(findings, frozen) + _DATABASE_AFTER)
        findings.figures["takeovers"]["database frozen"] = taken
        findings.expect("take-overs by a frozen database", taken, held=not taken)


def _ended(findings: Findings, frozen: Sequence[Fault]) -> float:
    return max(phase.ended for phase in findings.phases if phase.began <= frozen[0].began < phase.ended)


def figures_of(taken_over: Sequence[Takeover]) -> dict[str, Any]:
    """Returns the seconds in which turns of one kind of lost owner went on."""
    seconds = sorted(one.seconds for one in taken_over)
    if not seconds:
        return {"turns": 0}
    shown = {"median": statistics.median(seconds), "p99": percentile(seconds, 99), "worst": seconds[-1]}
    return {"turns": len(seconds), **{name: round(value, 2) for name, value in shown.items()}}
