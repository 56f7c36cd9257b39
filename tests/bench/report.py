"""The table on the terminal, and `bench.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from tests.bench.figures import Goal, Row, told


def table(rows: Sequence[Row], goals: Mapping[str, Goal]) -> str:
    """One line a row: name, median, spread, floor, ratio, goal, and whether it is met."""
    lines: list[tuple[str, ...]] = [("figure", "median", "min … max", "floor", "ratio", "goal", "", "")]
    lines += [_line(each, goals.get(each.name)) for each in rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(_laid_out(line, widths) for line in lines)


def missed(rows: Sequence[Row], goals: Mapping[str, Goal]) -> list[str]:
    """The names of the rows that miss their goal."""
    return [each.name for each in rows if each.met(goals.get(each.name)) is False]


def verdict(rows: Sequence[Row], goals: Mapping[str, Goal]) -> str:
    """What is met and what is missed, in one sentence each."""
    judged = [each for each in rows if each.name in goals]
    if not judged:
        return "no goal was measured"
    wrong = missed(rows, goals)
    met = f"goals met: {len(judged) - len(wrong)} of {len(judged)}"
    return f"{met}; missed: {', '.join(wrong)}" if wrong else f"{met}; missed: none"


def write(rows: Sequence[Row], goals: Mapping[str, Goal], file: Path) -> None:
    """The list of rows, as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(orjson.dumps([told(each, goals.get(each.name)) for each in rows], option=orjson.OPT_INDENT_2))


def _line(row: Row, goal: Goal | None) -> tuple[str, ...]:
    met = {True: "met", False: "MISSED", None: ""}[row.met(goal)]
    spread = f"{_shown(row.spread[0])} … {_shown(row.spread[1])}" if row.rounds > 1 else ""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f} x"
    value = f"{_shown(row.value)} {row.unit}".strip()
    return (row.name, value, spread, _shown(row.floor), ratio, goal.text if goal else "", met, row.about)


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _laid_out(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *middle, last = (word.ljust(width) for word, width in zip(line, widths, strict=True))
    return "  ".join([first, *middle, last]).rstrip()
