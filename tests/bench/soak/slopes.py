"""Whether something grows: the slope of a straight line through its values."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

PER: Final = 100
"""Turns of which a slope is given."""


@dataclass(frozen=True, slots=True)
class Slope:
    """How a value grew: from first to last, and for each 100 turns by the line of least squares."""

    first: float
    last: float
    per_100_turns: float


def slope(turns: Sequence[float], values: Sequence[float]) -> Slope:
    """Returns the slope of the values over the turns; 0 with fewer than two different numbers of turns."""
    if len(set(turns)) < 2:
        return Slope(values[0], values[-1], 0.0)
    return Slope(values[0], values[-1], PER * statistics.linear_regression(turns, values).slope)


def slopes(samples: Sequence[Mapping[str, Any]], *, after: float) -> dict[str, Slope]:
    """Returns the slope of each value of the samples from so many minutes on; all of them if there are too few.

    A sample has its `minute`, the `turns` until then, and `values` by name. A value that a sample lacks is left out.
    """
    settled = [sample for sample in samples if sample["minute"] >= after]
    used = settled if len(settled) > 1 else samples
    names = dict.fromkeys(name for sample in used for name in sample["values"])
    result: dict[str, Slope] = {}
    for name in names:
        points = [(sample["turns"], sample["values"][name]) for sample in used if name in sample["values"]]
        result[name] = slope([turns for turns, _ in points], [value for _, value in points])
    return result
