"""A span records what was done, to what it belongs and how it ended; no content of a conversation."""

import asyncio
import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from tests.unit.telemetry.calls import TRACEPARENT, Traces
from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.errors import LlmTimeout, ServiceUnavailable, SessionNotFound
from turnkeeper.model.contract import ModelFailure
from turnkeeper.telemetry.spans import Spans

CHAT = "turnkeeper.v1.ChatService"


def only(traces: Traces) -> ReadableSpan:
    (span,) = traces.exporter.get_finished_spans()
    return span


def attributes(traces: Traces) -> dict[str, object]:
    return dict(only(traces).attributes or {})


def trace_of(traceparent: str) -> str:
    return traceparent.split("-")[1]


def test_a_call_is_the_child_of_its_callers_span() -> None:
    traces = Traces()
    metadata: list[tuple[str, str | bytes]] = [
        ("user-agent", "grpc"),
        ("traceparent", TRACEPARENT),
        ("blob-bin", b"\x00"),
    ]
    with traces.spans.rpc(CHAT, method="SendMessage", metadata=metadata) as live:
        assert trace_of(traces.spans.traceparent()) == trace_of(TRACEPARENT)
        live.finished("OK")
    span = only(traces)
    assert (span.name, span.kind) == (f"{CHAT}/SendMessage", SpanKind.SERVER)
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == TRACEPARENT.split("-")[2]
    assert span.parent.is_remote
    assert attributes(traces) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{CHAT}/SendMessage",
        "rpc.response.status_code": "OK",
    }


@pytest.mark.parametrize("metadata", [(), None, [("traceparent", "nonsense")], [("traceparent", b"\xff")]])
def test_a_call_without_a_readable_parent_is_a_root(metadata: list[tuple[str, str | bytes]] | None) -> None:
    traces = Traces()
    with traces.spans.rpc(CHAT, method="GetTurn", metadata=metadata):
        pass
    assert only(traces).parent is None


def test_an_outer_span_is_no_parent_of_a_call() -> None:
    traces = Traces()
    with traces.spans.chat("small"), traces.spans.rpc(CHAT, method="GetTurn"):
        pass
    assert traces.exporter.get_finished_spans()[0].parent is None


@pytest.mark.parametrize(
    ("status", "error", "fault"),
    [
        ("OK", "", False),
        ("NOT_FOUND", "SESSION_NOT_FOUND", False),
        ("CANCELLED", "", False),
        ("UNAVAILABLE", "SERVER_DRAINING", True),
        ("INTERNAL", "INTERNAL_ERROR", True),
        ("DEADLINE_EXCEEDED", "", True),
    ],
)
def test_only_a_servers_fault_marks_a_call(status: str, error: str, fault: bool) -> None:
    traces = Traces()
    with traces.spans.rpc(CHAT, method="GetTurn") as live:
        live.finished(status, error=error)
    assert attributes(traces)["rpc.response.status_code"] == status
    assert attributes(traces).get("error.type", "") == (error or ("" if status == "OK" else status))
    assert (only(traces).status.status_code is StatusCode.ERROR) is fault


@pytest.mark.parametrize(
    ("error", "status", "name", "fault"),
    [
        (SessionNotFound(), "NOT_FOUND", "SESSION_NOT_FOUND", False),
        (ServiceUnavailable(), "UNAVAILABLE", "SERVICE_UNAVAILABLE", True),
        (asyncio.CancelledError(), "CANCELLED", "CANCELLED", False),
        (ZeroDivisionError("canary"), "UNKNOWN", "ZeroDivisionError", True),
    ],
)
def test_an_exception_that_leaves_a_call_gives_its_status(
    error: BaseException, status: str, name: str, fault: bool
) -> None:
    traces = Traces()
    with pytest.raises(type(error)), traces.spans.rpc(CHAT, method="GetTurn"):
        raise error
    assert attributes(traces)["rpc.response.status_code"] == status
    assert attributes(traces)["error.type"] == name
    assert (only(traces).status.status_code is StatusCode.ERROR) is fault


def test_the_first_end_of_a_call_counts() -> None:
    """The interceptor reports how a call ended and then aborts it by an exception."""
    traces = Traces()

    def abort() -> None:
        with traces.spans.rpc(CHAT, method="GetTurn") as live:
            live.finished("NOT_FOUND", error="TURN_NOT_FOUND")
            raise RuntimeError("abort")

    with pytest.raises(RuntimeError):
        abort()
    assert attributes(traces)["rpc.response.status_code"] == "NOT_FOUND"
    assert attributes(traces)["error.type"] == "TURN_NOT_FOUND"


def test_each_attempt_is_a_trace_of_its_own_linked_to_the_turns_root() -> None:
    traces = Traces()
    spans = traces.spans
    with spans.rpc(CHAT, method="SendMessage"):
        root = spans.traceparent()
        for attempt in (1, 2):
            links = [root, "", "nonsense"]
            with spans.invoke_agent("helper", session_id="s", turn_id="t", attempt=attempt, links=links) as live:
                with spans.chat("small", session_id="s"):
                    pass
                live.stopped("COMPLETED")
    first_chat, first, second_chat, second, call = traces.exporter.get_finished_spans()
    assert root.startswith(f"00-{call.context.trace_id:032x}-{call.context.span_id:016x}-")
    assert len({call.context.trace_id, first.context.trace_id, second.context.trace_id}) == 3
    for chat, attempt_span in ((first_chat, first), (second_chat, second)):
        assert attempt_span.parent is None
        assert [link.context.span_id for link in attempt_span.links] == [call.context.span_id]
        assert chat.parent is not None
        assert chat.parent.span_id == attempt_span.context.span_id
    assert first.name == "invoke_agent helper"
    assert (first.attributes or {})["gen_ai.conversation.id"] == "s"
    assert (second.attributes or {})["turnkeeper.turn.attempt"] == 2


def test_a_call_names_its_session_and_turn_and_links_to_the_attempt_that_starts_meanwhile() -> None:
    traces = Traces()
    spans = traces.spans
    with spans.rpc(CHAT, method="SendMessage") as call:
        call.concerns(session_id="s")
        spans.call_concerns(turn_id="t")
        spans.call_concerns(turn_id="t")
        for turn_id, attempt in (("t", 1), ("other", 1), ("t", 2)):
            with spans.invoke_agent("helper", session_id="s", turn_id=turn_id, attempt=attempt):
                pass
    first, _, second, rpc = traces.exporter.get_finished_spans()
    assert [link.context.span_id for link in rpc.links] == [first.context.span_id, second.context.span_id]
    assert (rpc.attributes or {})["gen_ai.conversation.id"] == "s"
    assert (rpc.attributes or {})["turnkeeper.turn.id"] == "t"


def test_a_call_about_a_turn_that_runs_links_to_its_attempt_and_one_that_came_later_to_none() -> None:
    traces = Traces()
    spans = traces.spans
    with spans.invoke_agent("helper", session_id="s", turn_id="t", attempt=1):
        with spans.rpc(CHAT, method="CancelTurn") as call:
            call.concerns(session_id="s", turn_id="t")
        with spans.rpc(CHAT, method="Check"):
            pass
    with spans.rpc(CHAT, method="GetTurn") as call:
        call.concerns(session_id="s", turn_id="t")
    cancel, check, attempt, later = traces.exporter.get_finished_spans()
    assert [link.context.span_id for link in cancel.links] == [attempt.context.span_id]
    assert not check.links
    assert not later.links
    assert spans.links.is_empty


def test_nothing_is_noted_of_a_call_that_is_not_recorded() -> None:
    spans = Traces().spans
    with spans.rpc(CHAT, method="GetTurn", metadata=[("traceparent", TRACEPARENT.removesuffix("01") + "00")]) as call:
        call.concerns(session_id="s", turn_id="t")
        with spans.invoke_agent("helper", session_id="s", turn_id="t", attempt=1):
            assert spans.links.is_empty is False
    assert spans.links.is_empty


def test_a_model_call_records_what_it_used() -> None:
    traces = Traces()
    server = ("models.example.com", 8080)
    with traces.spans.chat("small", server=server, session_id="s", max_output_tokens=64, temperature=0.0) as live:
        live.first_chunk(0.5)
        live.answered("small-0101", finish_reason="TOOL_CALLS", input_tokens=10, output_tokens=3)
        live.content(input_json="canary", output_json="canary")
    assert only(traces).kind is SpanKind.CLIENT
    assert only(traces).name == "chat small"
    assert attributes(traces) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "small",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.temperature": 0.0,
        "server.address": "models.example.com",
        "server.port": 8080,
        "gen_ai.conversation.id": "s",
        "gen_ai.response.model": "small-0101",
        "gen_ai.response.finish_reasons": ("tool_calls",),
        "gen_ai.response.time_to_first_chunk": 0.5,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 3,
    }


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (LlmTimeout(), "LLM_TIMEOUT"),
        (ModelFailure(ErrorDetail(code=Code.LLM_RATE_LIMIT, message="canary"), retryable=True), "LLM_RATE_LIMIT"),
    ],
)
def test_a_failed_model_call_names_its_code(error: Exception, name: str) -> None:
    traces = Traces()
    with pytest.raises(type(error)), traces.spans.chat("small"):
        raise error
    assert attributes(traces)["error.type"] == name
    assert only(traces).status.status_code is StatusCode.ERROR


def test_a_span_does_not_end_before_it_starts() -> None:
    """The start comes from another replica, whose clock may be ahead."""
    traces = Traces()
    ahead = time.time_ns() + 3600 * 10**9
    with traces.spans.execute_tool("look", call_id="c", source="client", tool_class="READ_ONLY", start_time=ahead):
        pass
    span = only(traces)
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= span.end_time < ahead


@pytest.mark.parametrize(
    ("outcome", "fault"), [("OK", False), ("FAILED", True), ("TIMED_OUT", True), ("REJECTED", False), ("DENIED", False)]
)
def test_a_persons_no_is_no_fault_of_the_tool(outcome: str, fault: bool) -> None:
    traces = Traces()
    with traces.spans.execute_tool("pay", call_id="c", source="samples", tool_class="IRREVERSIBLE") as live:
        live.finished(outcome)
    assert only(traces).name == "execute_tool pay"
    assert attributes(traces)["turnkeeper.tool.outcome"] == outcome
    assert attributes(traces).get("error.type", "OK") == outcome
    assert (only(traces).status.status_code is StatusCode.ERROR) is fault


@pytest.mark.parametrize("record_content", [False, True])
def test_content_is_recorded_only_with_the_setting(record_content: bool) -> None:
    traces = Traces(record_content=record_content)
    with traces.spans.chat("small") as chat:
        chat.content(input_json='["canary"]', output_json='["canary"]')
    with traces.spans.execute_tool("pay", call_id="c", source="samples", tool_class="IRREVERSIBLE") as tool:
        tool.content(arguments_json='{"to":"canary"}', result_json='"canary"')
    texts = [span.to_json() for span in traces.exporter.get_finished_spans()]
    assert ["canary" in text for text in texts] == [record_content, record_content]


def test_neither_an_exceptions_text_nor_a_credential_is_recorded() -> None:
    traces = Traces()
    spans = traces.spans
    openers = [
        spans.rpc(CHAT, method="GetTurn", metadata=[("authorization", "Bearer canary"), ("x-api-key", "canary")]),
        spans.invoke_agent("helper", session_id="s", turn_id="t", attempt=1),
        spans.chat("small"),
        spans.execute_tool("pay", call_id="c", source="samples", tool_class="READ_ONLY"),
    ]
    for opener in openers:
        with pytest.raises(ValueError, match="canary"), opener:
            raise ValueError("canary")
    for span in traces.exporter.get_finished_spans():
        assert "canary" not in span.to_json()
        assert (span.attributes or {})["error.type"] == "ValueError"
        assert not span.events
        assert span.status.description is None


def test_there_is_no_traceparent_outside_a_span() -> None:
    assert Spans.traceparent() == ""


async def test_concurrent_tasks_do_not_share_a_span() -> None:
    traces = Traces()

    async def call(name: str) -> None:
        with traces.spans.rpc(CHAT, method=name):
            mine = get_current_span()
            await asyncio.sleep(0)
            with traces.spans.chat(name):
                await asyncio.sleep(0)
            assert get_current_span() is mine

    async with asyncio.TaskGroup() as group:
        for name in ("A", "B", "C"):
            group.create_task(call(name))
    spans = {span.name: span for span in traces.exporter.get_finished_spans()}
    for name in ("A", "B", "C"):
        parent = spans[f"chat {name}"].parent
        assert parent is not None
        assert parent.span_id == spans[f"{CHAT}/{name}"].context.span_id


def test_a_long_value_is_cut() -> None:
    traces = Traces(record_content=True)
    with traces.spans.chat("small") as live:
        live.content(input_json="x" * 16_385, output_json="y" * 16_384)
    assert attributes(traces)["gen_ai.input.messages"] == "x" * 16_384
    assert attributes(traces)["gen_ai.output.messages"] == "y" * 16_384


def test_a_caller_that_does_not_record_its_trace_has_no_spans_here() -> None:
    traces = Traces()
    unsampled = TRACEPARENT.removesuffix("01") + "00"
    with traces.spans.rpc(CHAT, method="GetTurn", metadata=[("traceparent", unsampled)]), traces.spans.chat("small"):
        assert trace_of(traces.spans.traceparent()) == trace_of(TRACEPARENT)
        assert traces.spans.traceparent().endswith("-00")
    assert not traces.exporter.get_finished_spans()


def test_the_sampler_is_opentelemetrys_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    traces = Traces()
    with traces.spans.chat("small"):
        assert traces.spans.traceparent()
    assert not traces.exporter.get_finished_spans()


def test_a_span_takes_as_long_as_its_inside() -> None:
    traces = Traces()
    before = time.time_ns()
    with traces.spans.chat("small"):
        inside = time.time_ns()
    span = only(traces)
    assert before <= (span.start_time or 0) <= inside <= (span.end_time or 0) <= time.time_ns()
    assert (span.instrumentation_scope and span.instrumentation_scope.name) == "turnkeeper"


def test_after_a_span_the_one_around_it_is_the_current_one() -> None:
    spans = Traces().spans
    with spans.chat("small"):
        outer = spans.traceparent()
        with spans.execute_tool("pay", call_id="c", source="samples", tool_class="READ_ONLY"):
            assert spans.traceparent() != outer
        assert spans.traceparent() == outer
    assert spans.traceparent() == ""
