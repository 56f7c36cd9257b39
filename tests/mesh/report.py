"""The report of a run on a terminal: at most 80 columns."""

import textwrap
from collections import Counter
from typing import Final

from tests.mesh.findings import Findings

WIDTH: Final = 80
_ABOUT: Final = 44
_COMPLAINTS: Final = 12


def table(findings: Findings) -> str:
    """Returns a line for each fault and each promise, then the complaints."""
    return "\n".join([*_faults(findings), *_latency(findings), *_promises(findings), *_complaints(findings)])


def _faults(findings: Findings) -> list[str]:
    lines = [f"{'fault':26}{'replica':12}{'streams':>8}{'calls':>7}{'turns':>7}{'out':>8}"]
    for fault in findings.faults:
        out = "" if fault.out is None else f"{fault.out:.1f} s"
        turns = len(fault.turns) or ""
        lines.append(
            f"{fault.kind:26}{fault.replica:12}{fault.open.streams:>8}{fault.open.calls:>7}{turns:>7}{out:>8}".rstrip()
        )
    return [*lines, ""]


def _latency(findings: Findings) -> list[str]:
    figures = findings.figures.get("latency", {})
    if not figures:
        return []
    return [f"Envoy adds {figures['added_p50_ms']} ms (p50), {figures['added_p99_ms']} ms (p99) to a short call", ""]


def _promises(findings: Findings) -> list[str]:
    lines: list[str] = []
    for promise in findings.promises:
        word = "" if promise.held else "BROKEN"
        lines.append(f"{promise.about:{_ABOUT}.{_ABOUT}} {promise.measured:{WIDTH - _ABOUT - 8}} {word}".rstrip())
    broken = sum(not promise.held for promise in findings.promises)
    return [*lines, f"{len(findings.promises)} promises, {broken} broken"]


def _complaints(findings: Findings) -> list[str]:
    counted = Counter(findings.complaints).most_common(_COMPLAINTS)
    lines = [f"{times} x {words}" if times > 1 else words for words, times in counted]
    shown = [textwrap.shorten(line, 4 * (WIDTH - 4), placeholder=" …") for line in lines]
    wrapped = [textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in shown]
    left = len(set(findings.complaints)) - len(counted)
    return [*wrapped, *([f"  and {left} more, in the report"] if left > 0 else [])]
