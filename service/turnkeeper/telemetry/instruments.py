"""Counts in this process, as plain numbers; a reader of OpenTelemetry asks for all of them when it sends or is scraped.

OpenTelemetry's own instruments cost 4 to 8 µs a record, these less than one. Only the event loop's thread records; any
thread may read, and may then see a record that is half done: a histogram's sum without the last value.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import inf
from time import time_ns
from typing import TypeAlias

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from turnkeeper.telemetry.labels import OTHER

MOST_SETS = 2000
"""Sets of labels that one instrument keeps; what comes later is counted under `_OTHER`."""

_SINCE_START = AggregationTemporality.CUMULATIVE
_Values: TypeAlias = tuple[str, ...]


class Instruments:
    """Makes instruments and reads them. A record names the values of the labels in their order; "" is left out."""

    def __init__(self) -> None:
        self._reads: list[Callable[[int], Metric | None]] = []

    def counter(self, name: str, unit: str, description: str, *labels: str) -> "Total":
        return self._total(name, unit, description, labels, rises=True)

    def level(self, name: str, unit: str, description: str) -> "Total":
        """An up-down counter; it says 0 before the first record."""
        total = self._total(name, unit, description, (), rises=False)
        total.add(amount=0)
        return total

    def gauge(self, name: str, unit: str, description: str) -> "Latest":
        latest = Latest()

        def read(now: int) -> Metric | None:
            if latest.value is None:
                return None
            return Metric(name, description, unit, Gauge([NumberDataPoint({}, 0, now, latest.value)]))

        self._reads.append(read)
        return latest

    def histogram(
        self, name: str, unit: str, description: str, *labels: str, buckets: Sequence[float]
    ) -> "Distribution":
        """`buckets` are the upper bounds, each inside its bucket."""
        distribution = Distribution(buckets)

        def read(now: int) -> Metric | None:
            points = [
                _point(_named(labels, values), cell, buckets, now) for values, cell in list(distribution.cells.items())
            ]
            return Metric(name, description, unit, Histogram(points, _SINCE_START)) if points else None

        self._reads.append(read)
        return distribution

    def read(self, resource: Resource, scope: str) -> MetricsData:
        """All that was recorded since the start."""
        now = time_ns()
        metrics = [metric for read in self._reads if (metric := read(now))]
        of_scope = ScopeMetrics(InstrumentationScope(scope), metrics, "")
        return MetricsData([ResourceMetrics(resource, [of_scope], resource.schema_url)])

    def _total(self, name: str, unit: str, description: str, labels: _Values, *, rises: bool) -> "Total":
        total, began = Total(), time_ns()

        def read(now: int) -> Metric | None:
            points = [
                NumberDataPoint(_named(labels, values), began, now, amount)
                for values, amount in list(total.amounts.items())
            ]
            return Metric(name, description, unit, Sum(points, _SINCE_START, rises)) if points else None

        self._reads.append(read)
        return total


class Total:
    def __init__(self) -> None:
        self.amounts: dict[_Values, int] = {}

    def add(self, *values: str, amount: int = 1) -> None:
        amounts = self.amounts
        if values not in amounts:
            values = _within(values, len(amounts))
            amounts.setdefault(values, 0)
        amounts[values] += amount


class Latest:
    value: int | None = None

    def set(self, value: int) -> None:
        self.value = value


class Cell:
    """What one set of labels has of a histogram."""

    __slots__ = ("began", "counts", "highest", "lowest", "total")

    def __init__(self, buckets: int) -> None:
        self.began = time_ns()
        self.counts = [0] * (buckets + 1)
        self.total: float = 0
        self.lowest, self.highest = inf, -inf


class Distribution:
    def __init__(self, buckets: Sequence[float]) -> None:
        self.cells: dict[_Values, Cell] = {}
        self._buckets = buckets

    def record(self, value: float, *values: str) -> None:
        cell = self.cells.get(values) or self._cell(values)
        cell.counts[bisect_left(self._buckets, value)] += 1
        cell.total += value
        if value < cell.lowest:
            cell.lowest = value
        if value > cell.highest:
            cell.highest = value

    def _cell(self, values: _Values) -> Cell:
        return self.cells.setdefault(_within(values, len(self.cells)), Cell(len(self._buckets)))


def _within(values: _Values, sets: int) -> _Values:
    return values if sets < MOST_SETS else (OTHER,) * len(values)


def _named(labels: _Values, values: _Values) -> dict[str, str]:
    return {name: value for name, value in zip(labels, values, strict=True) if value}


def _point(labels: dict[str, str], cell: Cell, buckets: Sequence[float], now: int) -> HistogramDataPoint:
    counts = tuple(cell.counts)
    return HistogramDataPoint(
        attributes=labels,
        start_time_unix_nano=cell.began,
        time_unix_nano=now,
        count=sum(counts),
        sum=cell.total,
        bucket_counts=counts,
        explicit_bounds=buckets,
        min=cell.lowest,
        max=cell.highest,
    )
