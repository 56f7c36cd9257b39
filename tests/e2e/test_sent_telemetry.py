"""What a collector gets from `turnkeeper serve`: every row of the telemetry page, and nothing without a row.

Three servers send to one collector. One of them serves, one is killed, one is stopped until its turn is another's.
"""

import asyncio
import contextlib
import json
import os
import re
import urllib.request
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.e2e.support.telemetry_scenes import (
    CANARY,
    EXACT,
    SCRIPT,
    Place,
    Sent,
    ask_too_much,
    ask_too_often,
    converse,
    fail,
    leave_a_tool,
    lose_an_owner,
    lose_the_inbox,
    one_turn,
    read_too_slowly,
    renew_a_certificate,
    stop_an_owner,
)
from tests.integration.collector import collector
from tests.processes import until
from tests.test_tools import ToolControl
from tests.unit.telemetry.test_reference import quoted, rows

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(
    mongo_uri: str, tool_control: ToolControl, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Place]:
    agents = tmp_path_factory.mktemp("agents") / "agents.toml"
    agents.write_text(AGENTS.read_text() + EXACT)
    database = f"turnkeeper_test_telemetry_{os.getpid()}"
    async with harness.scripted(SCRIPT) as model:
        yield Place(mongo_uri=mongo_uri, database=database, model=model, tool_control=tool_control, agents=agents)
    async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
        await client.drop_database(database)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sent(place: Place) -> AsyncIterator[Sent]:
    """Runs turns through every event of the page, and ends the servers. Returns what was sent."""
    with collector() as received:
        otlp = ("--exporter", "otlp", "--otlp-endpoint", received.endpoint)
        sent = Sent(collector=received)
        async with (
            place.server(*otlp, "--operation-time", "2s") as server,
            harness.connect(server.address) as stubs,
        ):
            await converse(stubs, sent)
            await fail(place, stubs)
            await leave_a_tool(stubs)
            await lose_the_inbox(place, stubs)
            await lose_an_owner(place, stubs, otlp)
            await stop_an_owner(place, stubs, otlp)
            await asyncio.gather(
                read_too_slowly(server.address, stubs),
                ask_too_much(place, otlp),
                renew_a_certificate(place, otlp),
                ask_too_often(place, otlp),
            )
            assert await server.terminate() == 0
        yield sent


@pytest.mark.parametrize("row", rows("Metrics"), ids=lambda row: row[0].strip("`"))
async def test_each_metric_is_sent_with_exactly_its_labels(sent: Sent, recorded: Sent, row: list[str]) -> None:
    """A server that records content sends no other labels."""
    name, kind, unit, labels, _ = row
    metrics = [metric for metric in sent.collector.received if metric.name == quoted(name).pop()]
    assert metrics, "nothing of this name was sent"
    for metric in metrics:
        assert metric.unit == quoted(unit).pop()
        assert shape(metric) == kind
    assert keys(metrics) == quoted(labels)
    assert keys(named(recorded, quoted(name).pop())) <= quoted(labels)


async def test_no_metric_is_sent_that_the_page_does_not_name(sent: Sent) -> None:
    documented = {quoted(row[0]).pop() for row in rows("Metrics")}
    assert {metric.name for metric in sent.collector.received} == documented


async def test_labels_name_agents_tools_and_servers(sent: Sent, place: Place) -> None:
    assert {"act", "misbehave", "_OTHER"} <= values(sent, "gen_ai.execute_tool.duration", "gen_ai.tool.name")
    assert "look" not in values(sent, "gen_ai.execute_tool.duration", "gen_ai.tool.name")
    assert values(sent, "turnkeeper.tool_calls", "source") == {"python", "client"}
    assert {"asker", "exact", "hasty", "talker", "worker"} == values(sent, "turnkeeper.turn.duration", "agent")
    host, port = re.findall(r"//(.*):(\d+)", place.model.base_url)[0]
    for name in ("gen_ai.client.operation.duration", "gen_ai.client.token.usage"):
        assert values(sent, name, "server.address") == {host}
        assert values(sent, name, "server.port") == {int(port)}
    assert {"claim", "transaction", "snapshot"} <= values(sent, "db.client.operation.duration", "db.operation.name")


async def test_a_take_over_is_measured_from_when_the_turn_could_be_claimed(sent: Sent) -> None:
    delays = [point for metric in named(sent, "turnkeeper.takeover.delay") for point in metric.histogram.data_points]
    assert sum(point.count for point in delays) >= 2
    assert all(0 <= point.min <= point.max < 10 for point in delays)


@pytest.mark.parametrize("row", rows("Spans"), ids=lambda row: row[0].strip("`"))
async def test_each_span_is_sent_with_exactly_its_attributes(sent: Sent, recorded: Sent, row: list[str]) -> None:
    """The attributes of content, and all others, by a server that records content."""
    name, kind, attributes = row
    prefix = "turnkeeper.v1." if "method" in name else quoted(name).pop().split("{")[0]
    content = quoted(attributes.partition("; content:")[2])
    spans = sent.named(prefix)
    assert {Span.SpanKind.Name(span.kind) for span in spans} == {f"SPAN_KIND_{kind.upper()}"}
    assert {attribute.key for span in spans for attribute in span.attributes} == quoted(attributes) - content
    with_content = {attribute.key for span in recorded.named(prefix) for attribute in span.attributes}
    assert content <= with_content <= quoted(attributes)


async def test_no_span_is_sent_that_the_page_does_not_name(sent: Sent) -> None:
    known = ("invoke_agent ", "chat ", "execute_tool ", "turnkeeper.v1.")
    assert not {span.name for span in sent.collector.spans if not span.name.startswith(known)}


async def test_a_call_and_its_turn_link_to_each_other(sent: Sent) -> None:
    calls = [span for span in sent.named("turnkeeper.v1.ChatService/StreamMessage") if text(span, TURN) == sent.turn_id]
    attempts = [span for span in sent.named("invoke_agent") if text(span, TURN) == sent.turn_id]
    first = calls[0]
    assert text(first, SESSION) == sent.session_id
    assert attempts
    for attempt in attempts:
        assert text(attempt, SESSION) == sent.session_id
        assert [link.span_id for link in attempt.links] == [first.span_id]
        assert attempt.trace_id != first.trace_id
    assert attempts[0].span_id in [link.span_id for link in first.links]
    (decision,) = sent.named("turnkeeper.v1.ApprovalService/DecideApproval")
    assert (text(decision, SESSION), text(decision, TURN)) == (sent.session_id, sent.turn_id)


async def test_content_is_sent_only_where_the_switch_is_on(sent: Sent, recorded: Sent) -> None:
    assert CANARY.encode() not in sent.collector.raw
    (first, second) = sorted(recorded.named("chat "), key=lambda span: span.start_time_unix_nano)
    assert json.loads(text(first, "gen_ai.input.messages"))[-1] == {
        "role": "user",
        "parts": [{"type": "text", "content": f"act {CANARY}"}],
    }
    (answer,) = json.loads(text(first, "gen_ai.output.messages"))
    assert answer["finish_reason"] == "tool_calls"
    assert (answer["parts"][0]["type"], answer["parts"][0]["name"]) == ("tool_call", "act")
    assert json.loads(text(second, "gen_ai.input.messages"))[-1]["parts"][0]["type"] == "tool_call_response"
    (tool,) = recorded.named("execute_tool act")
    assert json.loads(text(tool, "gen_ai.tool.call.arguments")) == {"label": CANARY}
    assert json.loads(text(tool, "gen_ai.tool.call.result")) == f"{CANARY} is done"
    assert recorded.collector.received
    assert not [metric.name for metric in recorded.collector.received if CANARY.encode() in metric.SerializeToString()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recorded(place: Place) -> AsyncIterator[Sent]:
    """Runs one turn with a tool on a server that records content. Returns what was sent."""
    with collector() as received:
        flags = ("--exporter", "otlp", "--otlp-endpoint", received.endpoint, "--record-content")
        async with place.server(*flags) as server, harness.connect(server.address) as stubs:
            await one_turn(stubs)
            assert await server.terminate() == 0
        yield Sent(collector=received)


class TestExporters:
    async def test_the_console_shows_one_line_for_each_span(self, place: Place, tmp_path: Path) -> None:
        lines = [json.loads(line) for line in await self.standard_error(place, tmp_path, "--exporter", "console")]
        spans = [line["name"] for line in lines if "span" in line]
        assert spans.count("invoke_agent worker") == 1
        assert spans.count("execute_tool act") == 1
        assert "turnkeeper.v1.ChatService/SendMessage" in spans
        assert "turnkeeper.turn.duration" in {line["metric"] for line in lines if "metric" in line}
        assert not [line for line in lines if CANARY in json.dumps(line)]

    async def test_without_an_exporter_nothing_is_sent_or_shown(self, place: Place, tmp_path: Path) -> None:
        with collector() as received:
            lines = await self.standard_error(
                place, tmp_path, "--exporter", "none", "--otlp-endpoint", received.endpoint
            )
        assert not received.raw
        assert {"span", "metric"}.isdisjoint({key for line in lines for key in json.loads(line)})

    async def test_prometheus_shows_every_metric_that_one_turn_has(self, place: Place, tmp_path: Path) -> None:
        text = await self.scraped(place, tmp_path, "--exporter", "prometheus", "--prometheus-port", "0")
        for name in ("turnkeeper_turn_duration_seconds_count", "gen_ai_execute_tool_duration_seconds_count"):
            assert re.search(rf"^{name}{{.*}} 1\.0$", text, re.MULTILINE)
        assert 'turnkeeper_messages_total{role="USER"} 1.0' in text
        assert 'db_operation_name="transaction"' in text

    async def standard_error(self, place: Place, tmp_path: Path, *flags: str) -> list[str]:
        """Runs a server for one turn. Returns its lines on standard error."""
        with (tmp_path / "stderr").open("wb") as stderr:
            async with self.running(place, stderr.fileno(), *flags) as (server, stubs):
                await one_turn(stubs)
                assert await server.terminate() == 0
        return (tmp_path / "stderr").read_text().splitlines()

    async def scraped(self, place: Place, tmp_path: Path, *flags: str) -> str:
        """Returns a scrape after one turn."""
        file = tmp_path / "stderr"
        with file.open("wb") as stderr:
            async with self.running(place, stderr.fileno(), *flags) as (_, stubs):
                await one_turn(stubs)
                await until(lambda: "/metrics" in file.read_text())
                (url,) = re.findall(r"http://\S+/metrics", file.read_text())
                return await asyncio.to_thread(_get, url)

    @contextlib.asynccontextmanager
    async def running(
        self, place: Place, stderr: int, *flags: str
    ) -> AsyncIterator[tuple[harness.ServerProcess, harness.Stubs]]:
        async with (
            harness.server_process(
                place.mongo_uri,
                place.database,
                place.model,
                flags=("--agents", str(AGENTS), "--log-format", "json", *flags),
                variables=place.tool_control.variables,
                stderr=stderr,
            ) as server,
            harness.connect(server.address) as stubs,
        ):
            yield server, stubs


SESSION, TURN = "gen_ai.conversation.id", "turnkeeper.turn.id"


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def text(span: Span, name: str) -> str:
    return next((attribute.value.string_value for attribute in span.attributes if attribute.key == name), "")


def named(sent: Sent, name: str) -> list[Metric]:
    return [metric for metric in sent.collector.received if metric.name == name]


def keys(metrics: Sequence[Metric]) -> set[str]:
    """Returns the names of the labels."""
    return {label.key for metric in metrics for point in points(metric) for label in point.attributes}


def points(metric: Metric) -> Sequence[Any]:
    data = getattr(metric, metric.WhichOneof("data") or "gauge")
    return list(data.data_points)


def shape(metric: Metric) -> str:
    kind = metric.WhichOneof("data") or ""
    if kind == "sum":
        return "counter" if metric.sum.is_monotonic else "up-down counter"
    return kind


def values(sent: Sent, name: str, label: str) -> set[str | int]:
    return {
        attribute.value.string_value or attribute.value.int_value
        for metric in named(sent, name)
        for point in points(metric)
        for attribute in point.attributes
        if attribute.key == label
    }
