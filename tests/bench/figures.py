"""Rows of the table: each measured figure beside its floor and its goal."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


class Invalid(Exception):
    """The run is invalid; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The limit of a row. `of`: the limit is of its ratio to its floor, or of its value."""

    limit: float
    of: Literal["ratio", "value"]
    at_most: bool = True

    @property
    def text(self) -> str:
        """The goal as the table shows it: `≤ 0.6 x`."""
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}{' x' if self.of == 'ratio' else ''}"

    def met(self, shown: float) -> bool:
        return shown <= self.limit if self.at_most else shown >= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: the median of its rounds. `ratio` is to the floor's median."""

    name: str
    about: str
    unit: str
    value: float
    spread: tuple[float, float]
    rounds: int
    floor: float | None = None
    void: str = ""
    """Why the row does not count; a goal is then missed."""

    @property
    def ratio(self) -> float | None:
        return self.value / self.floor if self.floor else None

    def met(self, goal: Goal | None) -> bool | None:
        """Returns whether the goal is met; None without a goal. A goal of a ratio is missed if there is no ratio."""
        if goal is None:
            return None
        shown = self.value if goal.of == "value" else self.ratio
        return not self.void and shown is not None and goal.met(shown)


def row(
    name: str,
    about: str,
    rounds: Sequence[float],
    *,
    unit: str,
    floor: Sequence[float] | float | None = None,
    void: str = "",
) -> Row:
    """Returns a row of the rounds' figures and the floor's (each round's, or one). Raises Invalid without rounds.

    `void`: why it does not count, if it does not.
    """
    if not rounds:
        raise Invalid(f"{name}: nothing was measured")
    below = floor if floor is None or isinstance(floor, float | int) else statistics.median(floor)
    return Row(name, about, unit, statistics.median(rounds), (min(rounds), max(rounds)), len(rounds), below, void)


def row_json(row: Row, goal: Goal | None) -> dict[str, Any]:
    """Returns the row as `bench.json` has it."""
    return {
        "name": row.name,
        "about": row.about,
        "value": _short(row.value),
        "unit": row.unit,
        "spread": [_short(row.spread[0]), _short(row.spread[1])],
        "rounds": row.rounds,
        "floor": _short(row.floor),
        "ratio": _short(row.ratio),
        "goal": goal.text if goal else None,
        "met": row.met(goal),
        "void": row.void,
    }


def _short(value: float | None) -> float | None:
    """Returns the value with four significant digits."""
    return None if value is None else float(f"{value:.4g}")
