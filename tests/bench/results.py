"""`python -m tests.bench.results FILE…`: `bench.json` files as one Markdown table, runs side by side."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from tests.bench.machine import machine

Run = dict[str, dict[str, Any]]
"""Its rows by their names."""


def markdown(runs: Sequence[Run]) -> str:
    """A row a figure: each run's median and ratio to its floor; the last run's spread; the goal, and who met it."""
    names = list(dict.fromkeys(name for run in runs for name in run))
    heads = [f"run {number}" for number in range(1, len(runs) + 1)]
    lines = ["| figure | " + " | ".join([*heads, "min … max of the last", "goal", "met"]) + " |"]
    lines.append("| --- |" + " --- |" * (len(runs) + 3))
    lines += [_row(name, [run.get(name) for run in runs]) for name in names]
    return "\n".join(lines)


def _row(name: str, found: Sequence[dict[str, Any] | None]) -> str:
    last = [each for each in found if each][-1]
    met = [("yes" if each["met"] else "**no**") for each in found if each and each["met"] is not None]
    low, high = last["spread"]
    cells = [
        f"`{name}`: {last['about']}",
        *map(_figure, found),
        f"{low:g} … {high:g}",
        last["goal"] or "",
        ", ".join(met),
    ]
    return "| " + " | ".join(cells) + " |"


def _figure(told: dict[str, Any] | None) -> str:
    if told is None:
        return "-"
    value = f"{told['value']:g} {told['unit']}".strip()
    return value if told["ratio"] is None else f"{value} ({told['ratio']:.2f} x {told['floor']:g})"


def main(files: Sequence[str]) -> int:
    """The exit status."""
    if not files:
        print(
            f"{__doc__}\n\nexample: python -m tests.bench.results build/bench-1.json build/bench-2.json",
            file=sys.stderr,
        )
        return 2
    runs = [{row["name"]: row for row in orjson.loads(Path(each).read_bytes())} for each in files]
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine()}.\n\n{markdown(runs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
