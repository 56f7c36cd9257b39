"""What a source over gRPC makes of each end of a call: it never left, its outcome is unknown, or it has a result."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import jwt
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from tests.call_counts import counting_calls
from tests.contracts.gateway import CERTIFICATE
from tests.tool_servers.raw import RawServer, aborts, answers, progress, result
from tests.tool_servers.served import a_context, connected, served
from tests.unit.telemetry.calls import Traces
from turnkeeper.domain.tool import ReconciledState, ToolClass
from turnkeeper.pb.tools.v1 import tool_pb2
from turnkeeper.telemetry.spans import Spans
from turnkeeper.tools.contract import (
    CannotReconcile,
    NotStarted,
    OutcomeUnknown,
    Reconciled,
    SourceUnreachable,
    StillRunning,
    ToolError,
)
from turnkeeper.tools.remote.channel import authorities
from turnkeeper.tools.remote.listed import described
from turnkeeper.tools.remote.source import RemoteTools
from turnkeeper.tools.results import RESULT_BYTES, UnfitResult
from turnkeeper.tools.server_limits import DESCRIPTION, SCHEMA_BYTES
from turnkeeper.tools.server_log import MOST_LINES

TOOL = "ledger__transfer"
CODES = [code for code in grpc.StatusCode if code not in (grpc.StatusCode.OK, grpc.StatusCode.ABORTED)]
Answered = tuple[RawServer, RemoteTools]


@pytest_asyncio.fixture
async def both() -> AsyncIterator[Answered]:
    server = RawServer()
    async with served(server) as address, connected(address) as source:
        await source.refresh()
        yield server, source


async def hang(_: object, __: object) -> AsyncIterator[tool_pb2.CallToolResponse]:
    yield progress()
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
async def test_only_aborted_proves_that_a_call_had_no_effect(both: Answered, code: grpc.StatusCode) -> None:
    server, source = both
    server.answer = aborts(code)
    with pytest.raises(OutcomeUnknown, match="may have taken effect"):
        await source.call(TOOL, {}, a_context())


async def test_a_start_that_was_refused_never_left(both: Answered) -> None:
    server, source = both
    server.answer = aborts(grpc.StatusCode.ABORTED)
    with pytest.raises(NotStarted, match="so it is"):
        await source.call(TOOL, {}, a_context())


async def test_aborted_in_mid_call_is_no_refusal(both: Answered) -> None:
    server, source = both
    server.answer = aborts(grpc.StatusCode.ABORTED, progress())
    with pytest.raises(OutcomeUnknown):
        await source.call(TOOL, {}, a_context())


async def test_a_connection_that_never_opened_is_proof_and_one_that_broke_is_none() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with connected(address) as source:
            with pytest.raises(SourceUnreachable, match="cannot be reached"):
                await source.refresh()
            assert "cannot be reached" in source.problem
    server, started = RawServer(hang), asyncio.Event()
    context = a_context(report=lambda _: started.set())
    async with contextlib.AsyncExitStack() as stack:
        address = await stack.enter_async_context(served(server))
        async with connected(address) as source:
            await source.refresh()
            call = asyncio.create_task(source.call(TOOL, {}, context))
            await started.wait()
            await stack.aclose()
            with pytest.raises(OutcomeUnknown, match="may have taken effect"):
                await call


async def test_a_call_whose_connection_is_closed_on_this_side_has_an_unknown_outcome() -> None:
    server, started = RawServer(hang), asyncio.Event()
    async with served(server) as address:
        async with connected(address) as source:
            await source.refresh()
            call = asyncio.create_task(source.call(TOOL, {}, a_context(report=lambda _: started.set())))
            await started.wait()
        with pytest.raises(OutcomeUnknown, match="closed here"):
            await call


async def test_a_call_that_finds_its_server_gone_never_left(both: Answered) -> None:
    server = RawServer()
    async with connected("127.0.0.1:9") as gone:
        gone._foreign = {TOOL: "transfer"}  # noqa: SLF001 - as listed before
        with pytest.raises(NotStarted, match="did not run"):
            await gone.call(TOOL, {}, a_context())
    assert not server.calls


async def test_a_call_carries_what_its_server_may_know(both: Answered) -> None:
    server, source = both
    arguments = '{"to":"bob"}'
    context = a_context(attempt=3, arguments_json=arguments, on_behalf_of="eve", approval_id="a1")
    assert await source.call(TOOL, {}, context) == '"moved"'
    ((request, metadata),) = server.calls
    assert (request.name, request.arguments_json, request.idempotency_key, request.attempt, request.session_id) == (
        "transfer",
        arguments,
        context.key,
        3,
        "s",
    )
    assert request.HasField("start_time")
    assert server.times[0] < 60, "the deadline is the time of the tool"
    (key,) = source.tokens.key_set()
    token = metadata["authorization"].removeprefix("Bearer ")
    claims = jwt.decode(token, jwt.PyJWK(dict(key)), algorithms=["EdDSA"], audience="ledger", issuer="turnkeeper")
    names = ("tenant", "principal", "on_behalf_of", "session", "call", "attempt", "approval")
    assert tuple(claims[name] for name in names) == ("default", "ada", "eve", "s", "call", 3, "a1")
    assert claims["exp"] - claims["iat"] == 60
    assert len(claims["arguments_sha256"]) == 64


async def test_a_cancellation_and_a_deadline_reach_the_server(both: Answered) -> None:
    server, source = both
    server.answer = hang
    started = asyncio.Event()
    call = asyncio.create_task(source.call(TOOL, {}, a_context(report=lambda _: started.set())))
    await started.wait()
    call.cancel()
    await server.cancelled.wait()
    server.cancelled.clear()
    with pytest.raises(OutcomeUnknown, match="DEADLINE_EXCEEDED"):
        await source.call(TOOL, {}, a_context(timeout=timedelta(milliseconds=50)))
    await server.cancelled.wait()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps("x" * RESULT_BYTES), "more than"),
        ("{", "no JSON"),
        ("[" * 100 + "]" * 100, "no JSON"),
        ('"\\ud800"', "no JSON"),
        ("NaN", "no JSON"),
    ],
    ids=["large", "cut", "deep", "half-character", "nan"],
)
async def test_a_result_that_cannot_be_passed_on_is_told_to_the_model(both: Answered, text: str, words: str) -> None:
    server, source = both
    server.answer = answers(result(text))
    with pytest.raises(UnfitResult, match=words):
        await source.call(TOOL, {}, a_context())
    server.reconciled = tool_pb2.ReconcileResponse(done=tool_pb2.Done(result_json=text))
    answer = await source.reconcile(TOOL, a_context())
    assert isinstance(answer, Reconciled)
    assert (answer.state, answer.took_effect) == (ReconciledState.FAILED, True)


@pytest.mark.parametrize("text", ["null", '"\\u202e☃ 漢"', "[[[[1]]]]", "0"])
async def test_any_other_json_is_a_result_as_it_is(both: Answered, text: str) -> None:
    server, source = both
    server.answer = answers(progress(), result(text))
    assert await source.call(TOOL, {}, a_context()) == text


@pytest.mark.parametrize(("text", "words"), [('{"error":"no money"}', "no money"), ('"no"', "no"), ("[1]", r"\[1\]")])
async def test_a_failed_result_is_the_tools_own_failure(both: Answered, text: str, words: str) -> None:
    server, source = both
    server.answer = answers(result(text, failed=True))
    with pytest.raises(ToolError, match=words):
        await source.call(TOOL, {}, a_context())


async def test_a_flood_of_progress_is_cut_off(both: Answered, monkeypatch: pytest.MonkeyPatch) -> None:
    server, source = both
    monkeypatch.setattr("turnkeeper.tools.remote.source.MOST_PROGRESS", 100)
    server.answer = answers(*[progress("x" * 9_999)] * 101, result('"late"'))
    lines: list[str] = []
    with pytest.raises(OutcomeUnknown, match="too much"):
        await source.call(TOOL, {}, a_context(report=lines.append))
    assert len(lines) == 101


async def test_no_result_is_an_unknown_outcome(both: Answered) -> None:
    server, source = both
    server.answer = answers(progress())
    with pytest.raises(OutcomeUnknown, match="without a result"):
        await source.call(TOOL, {}, a_context())


async def test_each_answer_about_a_call(both: Answered) -> None:
    server, source = both
    context = a_context()
    with pytest.raises(CannotReconcile):
        await source.reconcile(TOOL, context)
    server.reconciled = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(SourceUnreachable):
        await source.reconcile(TOOL, context)
    for sent, answer in (
        (tool_pb2.ReconcileResponse(not_started=tool_pb2.NotStarted()), Reconciled(state=ReconciledState.NOT_STARTED)),
        (tool_pb2.ReconcileResponse(running=tool_pb2.Running()), StillRunning(timedelta(seconds=1))),
        (
            tool_pb2.ReconcileResponse(running=tool_pb2.Running(retry_after=Duration(seconds=1 << 40))),
            StillRunning(timedelta(minutes=1)),
        ),
        (
            tool_pb2.ReconcileResponse(running=tool_pb2.Running(retry_after=Duration(seconds=-5))),
            StillRunning(timedelta(seconds=0.1)),
        ),
        (
            tool_pb2.ReconcileResponse(failed=tool_pb2.Failed(result_json='"no"', took_effect=True)),
            Reconciled(state=ReconciledState.FAILED, result_json='"no"', took_effect=True),
        ),
        (tool_pb2.ReconcileResponse(unknown=tool_pb2.Unknown()), Reconciled(state=ReconciledState.UNKNOWN)),
        (tool_pb2.ReconcileResponse(), Reconciled(state=ReconciledState.UNKNOWN)),
    ):
        server.reconciled = sent
        assert await source.reconcile(TOOL, context) == answer


async def test_a_changed_list_is_another_listing_and_what_is_no_tool_is_left_out(both: Answered) -> None:
    server, source = both
    before = source.listing
    await source.refresh()
    assert source.listing == before
    server.tools += [
        tool_pb2.Tool(name="überweisen.jetzt", schema_json='{"type":"object"}'),
        tool_pb2.Tool(name="list", schema_json="[]"),
        tool_pb2.Tool(name="deep", schema_json="[" * 100 + "]" * 100),
        tool_pb2.Tool(name="transfer", schema_json="{}"),
    ]
    server.tools[0].annotations["class"] = "irreversible"
    await source.refresh()
    assert source.listing == before + 1
    first, second = source.specs()
    assert (first.name, first.tool_class) == (TOOL, ToolClass.IRREVERSIBLE)
    assert second.name.startswith("ledger___berweisen_jetzt_")
    assert (first.foreign_name, second.foreign_name) == ("", "überweisen.jetzt")
    assert await source.call(second.name, {}, a_context()) == '"moved"'
    assert server.calls[-1][0].name == "überweisen.jetzt"
    server.tools[:] = server.tools[1:2]
    await source.refresh()
    with pytest.raises(NotStarted, match="no tool"):
        await source.call(TOOL, {}, a_context())


async def test_a_long_description_is_cut_and_a_long_schema_is_none(both: Answered) -> None:
    server, source = both
    server.tools[0].description = "d" * 100_000
    server.tools += [
        tool_pb2.Tool(name="long", schema_json=json.dumps({"type": "object", "title": "t" * SCHEMA_BYTES}))
    ]
    await source.refresh()
    (spec,) = source.specs()
    assert (spec.name, len(spec.description)) == (TOOL, DESCRIPTION)


async def test_what_is_no_tool_is_logged_once_and_no_server_fills_the_log(
    both: Answered, caplog: pytest.LogCaptureFixture
) -> None:
    server, source = both
    server.tools += [tool_pb2.Tool(name="list", schema_json="[]")]
    for _ in range(3):
        await source.refresh()
    assert [record.getMessage() for record in caplog.records if "ledger__list" in record.getMessage()] == [
        "the tool server ledger: its tool ledger__list is not offered: its schema is not a JSON object"
    ]
    server.tools += [tool_pb2.Tool(name=f"odd{number}", schema_json="[]") for number in range(2 * MOST_LINES)]
    await source.refresh()
    assert len([record for record in caplog.records if "is not offered" in record.getMessage()]) == MOST_LINES


async def test_a_long_list_is_read_beside_the_event_loop(both: Answered) -> None:
    server, source = both
    server.tools += [tool_pb2.Tool(name=f"more{number}", schema_json='{"type":"object"}') for number in range(100)]
    with counting_calls() as counts:  # of this thread alone
        await source.refresh()
    assert len(source.specs()) > 100
    assert described.__qualname__ not in counts


async def test_a_server_is_trusted_by_its_certificate_alone() -> None:
    server, pem = RawServer(), authorities(CERTIFICATE)
    async with served(server, certificate=pem) as address:
        async with connected(address, ca=pem, plaintext=False) as trusting:
            await trusting.refresh()
            assert await trusting.call(TOOL, {}, a_context()) == '"moved"'
        async with connected(address, plaintext=False) as doubting:
            with pytest.raises(SourceUnreachable, match="cannot be reached"):
                await doubting.refresh()
        async with connected(address) as plain:
            with pytest.raises(SourceUnreachable):
                await plain.refresh()
    assert len(server.calls) == 1


async def test_a_call_carries_the_trace_of_its_turn(both: Answered) -> None:
    server, source = both
    with Traces().spans.execute_tool(TOOL, call_id="call", source="ledger", tool_class="IRREVERSIBLE"):
        parent = Spans.traceparent()
        await source.call(TOOL, {}, a_context())
    ((_, metadata),) = server.calls
    assert metadata["traceparent"] == parent
