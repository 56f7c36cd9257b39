"""`python -m tests.bench.results FILE…`: `bench.json` files as one Markdown table, runs side by side."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from tests.bench.machine import machine

Run = dict[str, dict[str, Any]]
"""The rows of a run by their names."""


def markdown(runs: Sequence[Run]) -> str:
    """Returns a table with a row a figure: each run's median and ratio, the last run's spread, and the goal."""
    names = list(dict.fromkeys(name for run in runs for name in run))
    heads = [f"run {number}" for number in range(1, len(runs) + 1)]
    lines = ["| figure | " + " | ".join([*heads, "min … max of the last", "goal", "met"]) + " |"]
    lines.append("| --- |" + " --- |" * (len(runs) + 3))
    lines += [_row(name, [run.get(name) for run in runs]) for name in names]
    return "\n".join(lines)


def _row(name: str, figures: Sequence[dict[str, Any] | None]) -> str:
    last = [figure for figure in figures if figure][-1]
    met = [("yes" if figure["met"] else "**no**") for figure in figures if figure and figure["met"] is not None]
    low, high = last["spread"]
    cells = [
        f"`{name}`: {last['about']}",
        *map(_figure, figures),
        f"{low:g} … {high:g}",
        last["goal"] or "",
        ", ".join(met),
    ]
    return "| " + " | ".join(cells) + " |"


def _figure(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    value = f"{figure['value']:g} {figure['unit']}".strip()
    value = value if figure["ratio"] is None else f"{value} ({figure['ratio']:.2f} x {figure['floor']:g})"
    return f"{value}, does not count" if figure.get("void") else value


def main(files: Sequence[str]) -> int:
    """Prints the table of the files. Returns the exit status."""
    if not files:
        print(
            f"{__doc__}\n\nexample: python -m tests.bench.results build/bench-1.json build/bench-2.json",
            file=sys.stderr,
        )
        return 2
    runs = [{row["name"]: row for row in orjson.loads(Path(file).read_bytes())} for file in files]
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine()}.\n\n{markdown(runs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
