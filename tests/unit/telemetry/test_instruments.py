"""What this process counts is what OpenTelemetry's own instruments would have counted."""

import dataclasses

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Metric, MetricsData, Sum
from opentelemetry.sdk.resources import Resource

from turnkeeper.telemetry.instruments import MOST_SETS, Instruments
from turnkeeper.telemetry.labels import OTHER

BUCKETS = (1.0, 2.5, 5.0)
VALUES = (0.0, 1.0, 1.1, 2.5, 4.0, 5.0, 5.1, 600.0)


def test_a_counter_a_level_a_gauge_and_a_histogram_read_as_opentelemetrys() -> None:
    reader = InMemoryMetricReader()
    resource = Resource({"service.name": "test"})
    meter = MeterProvider([reader], resource, shutdown_on_exit=False).get_meter("scope")
    calls, open_ = (
        meter.create_counter("calls", "{call}", "Calls."),
        meter.create_up_down_counter("open", "{x}", "Open."),
    )
    size, seconds = (
        meter.create_gauge("size", "{y}", "Size."),
        meter.create_histogram("seconds", "s", "Time.", explicit_bucket_boundaries_advisory=BUCKETS),
    )
    ours = Instruments()
    our_calls, our_open = ours.counter("calls", "{call}", "Calls.", "kind", "error"), ours.level("open", "{x}", "Open.")
    our_size = ours.gauge("size", "{y}", "Size.")
    our_seconds = ours.histogram("seconds", "s", "Time.", "kind", buckets=BUCKETS)
    for _ in range(3):
        calls.add(1, {"kind": "a"})
        our_calls.add("a", "")
    calls.add(1, {"kind": "a", "error": "b"})
    our_calls.add("a", "b")
    open_.add(2)
    open_.add(-1)
    our_open.add(amount=2)
    our_open.add(amount=-1)
    size.set(4)
    our_size.set(4)
    for value in VALUES:
        seconds.record(value, {"kind": "a"})
        our_seconds.record(value, "a")
    theirs = reader.get_metrics_data()
    assert theirs is not None
    assert timeless(ours.read(resource, "scope")) == timeless(theirs)


def test_what_was_never_recorded_is_not_there_but_a_level_is_zero() -> None:
    ours = Instruments()
    ours.counter("calls", "{call}", "Calls.")
    ours.gauge("size", "{y}", "Size.")
    ours.histogram("seconds", "s", "Time.", buckets=BUCKETS)
    ours.level("open", "{x}", "Open.")
    (level,) = metrics(ours.read(Resource({}), "scope"))
    assert isinstance(level.data, Sum)
    assert [(level.name, point.value) for point in level.data.data_points] == [("open", 0)]


def test_sets_of_labels_beyond_the_most_are_counted_together() -> None:
    ours = Instruments()
    calls = ours.counter("calls", "{call}", "Calls.", "kind")
    seconds = ours.histogram("seconds", "s", "Time.", "kind", buckets=BUCKETS)
    for number in range(MOST_SETS + 3):
        calls.add(f"kind-{number}")
        seconds.record(1, f"kind-{number}")
    calls.add("kind-0")
    counted, timed = metrics(ours.read(Resource({}), "scope"))
    assert isinstance(counted.data, Sum)
    assert isinstance(timed.data, Histogram)
    sums = {(point.attributes or {})["kind"]: point.value for point in counted.data.data_points}
    counts = {(point.attributes or {})["kind"]: point.count for point in timed.data.data_points}
    assert (len(sums), sums["kind-0"], sums[OTHER]) == (MOST_SETS + 1, 2, 3)
    assert (len(counts), counts[OTHER]) == (MOST_SETS + 1, 3)


def metrics(data: MetricsData) -> list[Metric]:
    return [metric for of in data.resource_metrics for scope in of.scope_metrics for metric in scope.metrics]


def timeless(data: MetricsData) -> list[tuple[object, ...]]:
    """All of it but the times."""
    (of,) = data.resource_metrics
    (scope,) = of.scope_metrics
    found: list[tuple[object, ...]] = [(of.resource, of.schema_url, scope.scope.name)]
    for metric in scope.metrics:
        parts = {each.name: getattr(metric.data, each.name) for each in dataclasses.fields(metric.data)}
        points = [
            {
                each.name: _plain(getattr(point, each.name))
                for each in dataclasses.fields(point)
                if not each.name.endswith("time_unix_nano") and each.name != "exemplars"
            }
            for point in parts.pop("data_points")
        ]
        found.append((metric.name, metric.unit, metric.description, type(metric.data), parts, points))
    return found


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value
