"""The instruments are OpenTelemetry's own: its views, exemplars and limits apply to them."""

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, HistogramDataPoint, InMemoryMetricReader, Sum
from opentelemetry.sdk.metrics.view import DropAggregation, ExplicitBucketHistogramAggregation, View
from opentelemetry.trace import get_current_span

from tests.unit.telemetry.calls import Meters, Traces, kind, points
from turnkeeper.telemetry.labels import OTHER, Labelled, LabelSet, PendingAmounts

BUCKETS = (1.0, 2.5, 5.0)
UNSAMPLED = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")]
VALUES = (0.0, 1.0, 1.1, 2.5, 4.0, 5.0, 5.1, 600.0)


def test_labels_by_position_are_what_attributes_by_name_are() -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("scope")
    by_name = meter.create_histogram("by_name", "s", explicit_bucket_boundaries_advisory=BUCKETS)
    by_position = meter.create_histogram("by_position", "s", explicit_bucket_boundaries_advisory=BUCKETS)
    batch = PendingAmounts()
    labelled = Labelled(by_position.record, "kind", "error", fixed={"system": "grpc"}, batch=batch)
    for value in VALUES:
        by_name.record(value, {"kind": "a", "system": "grpc"})
        labelled(value, "a", None)
    by_name.record(1, {"kind": "a", "system": "grpc", "error": "b"})
    labelled(1, "a", "b")
    batch.flush()
    data = reader.get_metrics_data()
    assert data is not None
    named, positioned = data.resource_metrics[0].scope_metrics[0].metrics
    assert isinstance(named.data, Histogram)
    assert isinstance(positioned.data, Histogram)
    assert [
        (dict(point.attributes or {}), point.count, point.sum, point.bucket_counts, point.explicit_bounds)
        for point in positioned.data.data_points
    ] == [
        (dict(point.attributes or {}), point.count, point.sum, point.bucket_counts, point.explicit_bounds)
        for point in named.data.data_points
    ]


def test_where_metrics_go_nowhere_no_amount_is_kept() -> None:
    recorded: list[float] = []

    def record(amount: float, /, attributes: LabelSet, context: Context) -> None:
        recorded.append(amount)

    for counting in (True, False):
        batch = PendingAmounts(counting=counting)
        Labelled(record, "kind", fixed={}, batch=batch)(2.5, "a")
        batch.flush()
        assert recorded == [2.5], f"counting: {counting}"


def test_what_was_never_recorded_is_not_there_but_a_level_is_zero() -> None:
    levels = Meters().read().values()
    assert {metric.name for metric in levels} == {
        "turnkeeper.connections.active",
        "turnkeeper.streams.active",
        "turnkeeper.turns.active",
    }
    for level in levels:
        assert kind(level) == "up-down counter"
        assert isinstance(level.data, Sum)
        assert [point.value for point in level.data.data_points] == [0]


def test_sets_of_labels_beyond_the_sdks_limit_are_counted_together() -> None:
    meters = Meters()
    for number in range(2_003):
        meters.metrics.message(f"kind-{number}")
        meters.metrics.tokens(f"kind-{number}", agent="helper", count=1)
    meters.metrics.message("kind-0")
    meters.metrics.tokens("kind-0", agent="helper", count=1)
    overflow = (("otel.metric.overflow", "True"),)
    messages = meters.points("turnkeeper.messages")
    assert (len(messages), messages[(("role", "kind-0"),)], messages[overflow]) == (2_001, 2, 3)
    tokens = {
        tuple((point.attributes or {}).items()): point.count
        for point in points(meters.read()["turnkeeper.tokens"])
        if isinstance(point, HistogramDataPoint)
    }
    first = next(count for labels, count in tokens.items() if ("kind", "kind-0") in labels)
    assert (len(tokens), first, tokens[(("otel.metric.overflow", True),)]) == (2_001, 2, 3)


def test_ids_do_not_fill_an_instrument() -> None:
    meters = Meters()
    for number in range(5_000):
        meters.metrics.message(f"{number:026d}")
    assert meters.points("turnkeeper.messages") == {(("role", OTHER),): 5_000}


def test_a_view_changes_buckets_and_drops_instruments() -> None:
    meters = Meters(
        views=[
            View(
                instrument_name="turnkeeper.turn.duration",
                aggregation=ExplicitBucketHistogramAggregation((1.0, 10.0)),
                attribute_keys={"outcome"},
            ),
            View(instrument_name="turnkeeper.messages", aggregation=DropAggregation()),
        ]
    )
    meters.metrics.turn_finished("COMPLETED", agent="helper", seconds=4)
    meters.metrics.message("USER")
    read = meters.read()
    assert "turnkeeper.messages" not in read
    turns = read["turnkeeper.turn.duration"].data
    assert isinstance(turns, Histogram)
    (point,) = turns.data_points
    assert (tuple(point.explicit_bounds), tuple(point.bucket_counts)) == ((1.0, 10.0), (0, 1, 0))
    assert dict(point.attributes or {}) == {"outcome": "COMPLETED"}


@pytest.mark.parametrize("sampled", [True, False])
def test_an_exemplar_names_the_span_that_was_open(sampled: bool) -> None:
    meters, spans = Meters(), Traces().spans
    with spans.rpc("service", method="Method", metadata=() if sampled else UNSAMPLED):
        trace_id = get_current_span().get_span_context().trace_id
        meters.metrics.rpc_finished("service", method="Method", code="OK", seconds=0.2)
    (point,) = points(meters.read()["rpc.server.call.duration"])
    assert [exemplar.trace_id for exemplar in point.exemplars or ()] == ([trace_id] if sampled else [])


def test_levels_are_read_when_they_are_collected() -> None:
    meters = Meters()
    for opened in (1, 2, 3):
        meters.metrics.stream_opened()
        assert meters.points("turnkeeper.streams.active") == {(): opened}
