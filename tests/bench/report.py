"""Formats the table on the terminal and writes `bench.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from tests.bench.figures import Goal, Row, row_json


def table(rows: Sequence[Row], goals: Mapping[str, Goal]) -> str:
    """Returns the table, one line for each row: name, median, spread, floor, ratio, goal, and whether it is met."""
    lines: list[tuple[str, ...]] = [("figure", "median", "min … max", "floor", "ratio", "goal", "", "")]
    lines += [_line(row, goals.get(row.name)) for row in rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(_laid_out(line, widths) for line in lines)


def missed(rows: Sequence[Row], goals: Mapping[str, Goal]) -> list[str]:
    """Returns the names of the rows that miss their goal."""
    return [row.name for row in rows if row.met(goals.get(row.name)) is False]


def goals_summary(rows: Sequence[Row], goals: Mapping[str, Goal]) -> str:
    """Returns how many goals are met, and which are missed, in one line."""
    judged = [row for row in rows if row.name in goals]
    if not judged:
        return "no goal was measured"
    wrong = missed(rows, goals)
    met = f"goals met: {len(judged) - len(wrong)} of {len(judged)}"
    return f"{met}; missed: {', '.join(wrong)}" if wrong else f"{met}; missed: none"


def write(rows: Sequence[Row], goals: Mapping[str, Goal], file: Path) -> None:
    """Writes the rows to the file, as a JSON list."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(orjson.dumps([row_json(row, goals.get(row.name)) for row in rows], option=orjson.OPT_INDENT_2))


def _line(row: Row, goal: Goal | None) -> tuple[str, ...]:
    met = {True: "met", False: "MISSED", None: ""}[row.met(goal)]
    spread = f"{_shown(row.spread[0])} … {_shown(row.spread[1])}" if row.rounds > 1 else ""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f} x"
    value = f"{_shown(row.value)} {row.unit}".strip()
    about = f"{row.about}; does not count: {row.void}" if row.void else row.about
    return (row.name, value, spread, _shown(row.floor), ratio, goal.text if goal else "", met, about)


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _laid_out(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *middle, last = (word.ljust(width) for word, width in zip(line, widths, strict=True))
    return "  ".join([first, *middle, last]).rstrip()
