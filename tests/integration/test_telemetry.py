"""Telemetry over real sockets: a collector that answers, one that does not, and a Prometheus that scrapes."""

import json
import logging
import re
import select
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable
from datetime import timedelta

import pytest
from opentelemetry import metrics as global_metrics
from opentelemetry import trace as global_trace
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE as CUMULATIVE
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA as DELTA
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from tests.integration.collector import collector, texts
from turnkeeper.codes import Code
from turnkeeper.telemetry.setup import Exporter, Options, Telemetry, TelemetryError, start

CHAT = "turnkeeper.v1.ChatService"
CANARY = "canary-0f3a"
SOON = Options(metrics_every=timedelta(milliseconds=100), shutdown_within=timedelta(seconds=1))


def started(exporter: Exporter, *, endpoint: str = "", port: int = 0, options: Options = SOON) -> Telemetry:
    return start(
        exporter,
        service_instance_id="replica-1",
        service_version="0.1.0",
        otlp_endpoint=endpoint,
        prometheus_port=port,
        options=options,
    )


def work(telemetry: Telemetry) -> None:
    """Records one call that begins a turn, the turn's work, and a failure whose text must not be sent."""
    spans, metrics = telemetry.spans, telemetry.metrics
    credentials = [("authorization", f"Bearer {CANARY}")]
    with spans.rpc(CHAT, method="SendMessage", metadata=credentials) as call:
        root = spans.traceparent()
        call.finished("OK")
    metrics.rpc_finished(CHAT, method="SendMessage", code="OK", seconds=0.01)
    metrics.message("USER")
    metrics.stream_opened()
    with spans.invoke_agent("helper", session_id="s", turn_id="t", attempt=1, links=[root]):
        with spans.chat("small", session_id="s") as chat:
            chat.content(input_json=CANARY, output_json=CANARY)
        with (
            pytest.raises(ValueError, match=CANARY),
            spans.execute_tool("pay", call_id="c", source="samples", tool_class="IRREVERSIBLE"),
        ):
            raise ValueError(CANARY)
    metrics.tool_finished("samples", tool_class="IRREVERSIBLE", outcome="FAILED", seconds=0.2)
    metrics.error(Code.TOOL_EXECUTION_ERROR)


def test_a_collector_gets_spans_and_metrics() -> None:
    with collector() as received:
        telemetry = started("otlp", endpoint=received.endpoint)
        work(telemetry)
        telemetry.shutdown()
    spans = {span.name: span for span in received.spans}
    assert set(spans) == {f"{CHAT}/SendMessage", "invoke_agent helper", "chat small", "execute_tool pay"}
    attempt, call = spans["invoke_agent helper"], spans[f"{CHAT}/SendMessage"]
    assert [link.span_id for link in attempt.links] == [call.span_id]
    assert attempt.trace_id != call.trace_id
    assert spans["chat small"].parent_span_id == attempt.span_id
    assert texts(spans["execute_tool pay"].attributes)["error.type"] == "ValueError"
    (messages,) = received.metrics["turnkeeper.messages"].sum.data_points
    assert (messages.as_int, texts(messages.attributes)) == (1, {"role": "USER"})
    (calls,) = received.metrics["rpc.server.call.duration"].histogram.data_points
    assert (calls.count, texts(calls.attributes)["rpc.method"]) == (1, f"{CHAT}/SendMessage")
    assert received.resource["service.instance.id"] == "replica-1"
    assert received.resource["service.name"] == "turnkeeper"
    assert CANARY.encode() not in received.raw
    assert b"SendMessage" in received.raw


def test_temporality_is_opentelemetrys_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    sent = sent_of_work()
    assert sent["turnkeeper.messages"].sum.aggregation_temporality == DELTA
    assert sent["rpc.server.call.duration"].histogram.aggregation_temporality == DELTA
    assert sent["turnkeeper.streams.active"].sum.aggregation_temporality == CUMULATIVE
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE")
    assert sent_of_work()["turnkeeper.messages"].sum.aggregation_temporality == CUMULATIVE


def test_the_kind_of_histogram_is_opentelemetrys_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent_of_work()["rpc.server.call.duration"].WhichOneof("data") == "histogram"
    name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    monkeypatch.setenv(name, "base2_exponential_bucket_histogram")
    duration = sent_of_work()["rpc.server.call.duration"]
    assert duration.WhichOneof("data") == "exponential_histogram"
    assert [point.count for point in duration.exponential_histogram.data_points] == [1]


@pytest.mark.parametrize(
    ("exemplars", "inside", "outside"), [("trace_based", 1, 0), ("always_on", 1, 1), ("always_off", 0, 0)]
)
def test_exemplars_are_opentelemetrys_own_setting(
    monkeypatch: pytest.MonkeyPatch, exemplars: str, inside: int, outside: int
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", exemplars)
    with collector() as received:
        telemetry = started("otlp", endpoint=received.endpoint)
        with telemetry.spans.rpc(CHAT, method="SendMessage"):
            telemetry.metrics.rpc_finished(CHAT, method="SendMessage", code="OK", seconds=0.01)
        telemetry.metrics.turn_finished("COMPLETED", agent="helper", seconds=1)
        telemetry.shutdown()
    (call,) = received.metrics["rpc.server.call.duration"].histogram.data_points
    (turn,) = received.metrics["turnkeeper.turn.duration"].histogram.data_points
    assert (len(call.exemplars), len(turn.exemplars)) == (inside, outside)
    assert all(exemplar.trace_id == received.spans[0].trace_id for exemplar in call.exemplars)


def sent_of_work() -> dict[str, Metric]:
    """Returns what a collector received of one `work`."""
    with collector() as received:
        telemetry = started("otlp", endpoint=received.endpoint)
        work(telemetry)
        telemetry.shutdown()
    return received.metrics


def test_metrics_are_sent_while_the_service_runs() -> None:
    with collector() as received:
        telemetry = started("otlp", endpoint=received.endpoint)
        telemetry.metrics.message("USER")
        wait_until(lambda: "turnkeeper.messages" in received.metrics)
        sent = dict(received.metrics)
        telemetry.shutdown()
    assert "turnkeeper.messages" in sent


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_collector_that_does_not_answer_costs_nothing_but_its_data(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = set(threading.enumerate())

    def is_tried() -> bool:
        if how == "refused":
            return any("StatusCode.UNAVAILABLE" in record.getMessage() for record in caplog.records)
        return bool(select.select([silent], [], [], 0)[0])

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if how == "refused":
            silent.close()
        telemetry = started("otlp", endpoint=f"http://127.0.0.1:{port}")
        with caplog.at_level(logging.DEBUG):
            for _ in range(10_000):  # more than the queue holds
                with telemetry.spans.rpc(CHAT, method="SendMessage") as call:
                    call.finished("OK")
                telemetry.metrics.message("USER")
            wait_until(is_tried)
            began = time.monotonic()
            telemetry.shutdown()
            took = time.monotonic() - began
    assert took < 4  # 1 s as set, 1 s for the rest, and a busy machine
    complaints = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(complaints) <= 5
    assert complaints[-1] == "the last metrics and spans are lost: the collector did not take them within 1 s"
    wait_until(lambda: not set(threading.enumerate()) - before)


def test_prometheus_scrapes_what_was_counted() -> None:
    telemetry = started("prometheus")
    work(telemetry)
    text = scrape(telemetry.prometheus_address)
    telemetry.shutdown()
    assert 'turnkeeper_messages_total{role="USER"} 1.0' in text
    assert 'turnkeeper_tool_calls_total{class="IRREVERSIBLE",outcome="FAILED",source="samples"} 1.0' in text
    assert 'turnkeeper_tool_duration_seconds_sum{source="samples"} 0.2' in text
    assert "# TYPE turnkeeper_streams_active gauge\nturnkeeper_streams_active 1.0\n" in text
    assert "turnkeeper_turns_active 0.0\n" in text
    assert 'service_instance_id="replica-1"' in text
    assert CANARY not in text
    assert not re.search(r'session="|turn="|tool="|otel_scope', text)


def test_prometheus_counts_on_between_two_scrapes() -> None:
    telemetry = started("prometheus")
    for count in (1.0, 2.0):
        telemetry.metrics.message("USER")
        assert f'turnkeeper_messages_total{{role="USER"}} {count}' in scrape(telemetry.prometheus_address)
    telemetry.shutdown()


def test_prometheus_is_on_loopback_and_gone_after_shutdown() -> None:
    telemetry = started("prometheus")
    host, port = telemetry.prometheus_address.rsplit(":", 1)
    assert host == "127.0.0.1"
    telemetry.shutdown()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


def test_a_taken_port_is_an_error_and_leaves_nothing_open() -> None:
    first = started("prometheus")
    port = int(first.prometheus_address.rsplit(":", 1)[1])
    before = threading.active_count()
    with pytest.raises(TelemetryError, match=f"127.0.0.1:{port} is taken"):
        started("prometheus", port=port)
    assert threading.active_count() == before
    first.shutdown()
    again = started("prometheus", port=port)
    assert again.prometheus_address == f"127.0.0.1:{port}"
    again.shutdown()


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(TelemetryError, match=r"192.0.2.1:0 cannot be had"):
        started("prometheus", options=Options(prometheus_host="192.0.2.1"))


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "grpc://collector"])
def test_an_endpoint_without_a_scheme_is_refused(endpoint: str) -> None:
    with pytest.raises(TelemetryError, match="http://"):
        started("otlp", endpoint=endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://",
        "http://:4317",
        "http://a b",
        "http://collector:99999",
        "http://collector:0",
        "http://c:p",
        "http://[::1",
    ],
)
def test_an_endpoint_that_cannot_be_dialled_is_refused(endpoint: str) -> None:
    with pytest.raises(TelemetryError, match="the OTLP endpoint is not an address such as http://"):
        started("otlp", endpoint=endpoint)


def test_an_endpoint_with_a_password_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter would log it with each failure."""
    address = f"http://ada:{CANARY}@127.0.0.1:4317"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", address)
    for endpoint, name in ((address, "the OTLP endpoint"), ("", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")):
        with pytest.raises(TelemetryError, match=f"{name} must hold no user and no password") as raised:
            started("otlp", endpoint=endpoint)
        assert CANARY not in str(raised.value)


def test_how_often_metrics_are_sent_is_opentelemetrys_own_setting_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    with collector() as received:
        telemetry = started("otlp", endpoint=received.endpoint, options=Options())
        telemetry.metrics.message("USER")
        wait_until(lambda: "turnkeeper.messages" in received.metrics)
        telemetry.shutdown()


def test_how_long_an_export_may_take_is_opentelemetrys_own_setting_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    options = Options(
        metrics_every=timedelta(milliseconds=50),
        export_within=timedelta(minutes=1),
        shutdown_within=timedelta(milliseconds=10),
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        telemetry = started("otlp", endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", options=options)
        wait_until(lambda: any("DEADLINE_EXCEEDED" in record.getMessage() for record in caplog.records))
        telemetry.shutdown()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_client_of_prometheus_that_leaves_writes_nothing_to_standard_error(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    telemetry = started("prometheus")
    host, port = telemetry.prometheus_address.rsplit(":", 1)
    client = socket.create_connection((host, int(port)))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    wait_until(lambda: any(record.msg.startswith("a scrape was not answered") for record in caplog.records))
    assert "turnkeeper_turns_active" in scrape(telemetry.prometheus_address)
    telemetry.shutdown()
    assert capfd.readouterr().err == ""


def test_the_console_shows_spans_and_metrics_but_no_content(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = started("console")
    work(telemetry)
    telemetry.shutdown()
    shown = capsys.readouterr()
    assert '"name": "chat small"' in shown.err
    lines = [json.loads(line) for line in shown.err.splitlines()]
    spans = [line["name"] for line in lines if "span" in line]
    assert sorted(spans) == sorted([f"{CHAT}/SendMessage", "invoke_agent helper", "chat small", "execute_tool pay"])
    assert "turnkeeper.messages" in shown.err
    assert CANARY not in shown.err
    assert shown.out == ""


def test_nothing_is_sent_but_spans_still_have_ids() -> None:
    telemetry = started("none")
    work(telemetry)
    with telemetry.spans.rpc(CHAT, method="SendMessage"):
        flags = telemetry.spans.traceparent().rsplit("-", 1)[1]
    assert int(flags, 16) & 1 == 0  # not sampled: nothing is recorded
    telemetry.shutdown()
    assert telemetry.prometheus_address == ""


@pytest.mark.parametrize("exporter", ["none", "console", "otlp", "prometheus"])
def test_nothing_global_changes_and_a_second_shutdown_does_nothing(
    exporter: Exporter, caplog: pytest.LogCaptureFixture
) -> None:
    before = global_trace.get_tracer_provider(), global_metrics.get_meter_provider()
    filters = {name: len(logger.filters) for name, logger in loggers().items()}
    with collector() as received:
        telemetry = started(exporter, endpoint=received.endpoint)
        telemetry.shutdown()
        telemetry.shutdown()
    assert (global_trace.get_tracer_provider(), global_metrics.get_meter_provider()) == before
    assert {name: len(loggers()[name].filters) for name in filters} == filters
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def loggers() -> dict[str, logging.Logger]:
    known = logging.getLogger().manager.loggerDict
    return {name: logger for name, logger in known.items() if isinstance(logger, logging.Logger)}


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        body: bytes = answer.read()
    return body.decode()
