"""Figures of a run."""

import statistics
from collections.abc import Sequence


def quantile(values: Sequence[float], share: float) -> float | None:
    """Returns the value that this share (0.5, 0.99) of them does not exceed, to 1/100; None without values."""
    if len(values) < 2:
        return round(values[0], 2) if values else None
    return round(statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1], 2)
