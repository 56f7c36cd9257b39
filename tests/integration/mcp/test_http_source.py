"""Tools of an MCP server over HTTP: which calls certainly never started, which failed, and whose outcome is unknown."""

import asyncio
import gzip
import json
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.mcp_servers import raw_http
from tests.mcp_servers.raw_http import Answer, RawServer, raw_server
from tests.mcp_servers.sdk_http import sdk_server, serving
from tests.mcp_servers.sources import a_context, at, running
from tests.name_service import answer_names
from tests.processes import resident, until
from turnkeeper.domain.tool import ToolClass
from turnkeeper.tools.contract import NotStarted, OutcomeUnknown, SourceUnreachable, ToolError
from turnkeeper.tools.mcp.source import McpTools
from turnkeeper.tools.mcp.tables import Revision

MIB = 1 << 20


@pytest_asyncio.fixture
async def server() -> AsyncIterator[RawServer]:
    """A server that answers as the test tells it."""
    async with raw_server() as raw:
        yield raw


@pytest_asyncio.fixture
async def source(server: RawServer) -> AsyncIterator[McpTools]:
    """Its tools, listed."""
    async with running(at(server.url)) as tools:
        await tools.refresh()
        yield tools


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_each_revision_is_spoken_with_a_server_made_by_the_sdk(revision: Revision) -> None:
    lines: list[str] = []
    async with serving(sdk_server().streamable_http_app()) as url, running(at(url, revision=revision)) as source:
        await source.refresh()
        assert source.revision == revision
        classes = {spec.name: spec.tool_class for spec in source.specs()}
        assert classes["web__add"] is ToolClass.READ_ONLY
        assert classes["web__count"] is ToolClass.IRREVERSIBLE
        assert json.loads(await source.call("web__add", {"a": 2, "b": 3}, a_context())) == {"result": 5}
        assert await source.call("web__count", {"steps": 3}, a_context(report=lines.append)) == '{"result": "counted"}'
        picture = json.loads(await source.call("web__picture", {}, a_context()))
        assert picture.splitlines() == [
            "Look:",
            "[image, image/png, 300 bytes: not shown]",
            "[resource file:///a b.png, source: not shown]",
        ]
        with pytest.raises(ToolError, match="has more than 1048576 bytes"):
            await source.call("web__big", {"size": 10 * MIB}, a_context())
        with pytest.raises(ToolError, match="validation error"):
            await source.call("web__add", {"a": "two"}, a_context())
        assert await source.call("web__add", {"a": 2, "b": 3}, a_context())
        before = source.listing
        await source.call("web__grow", {}, a_context())
        await until(lambda: source.listing != before)
        assert "web__newcomer" in [spec.name for spec in source.specs()]
    assert lines[-1] == "counting 2 of 3"


async def test_the_newest_revision_is_chosen_and_a_tool_that_wants_to_be_told_more_fails_politely() -> None:
    async with serving(sdk_server().streamable_http_app()) as url, running(at(url)) as source:
        await source.refresh()
        assert source.revision == "2026-07-28"
        with pytest.raises(ToolError, match="needs to be told more by a person"):
            await source.call("web__confirm", {}, a_context())


@pytest.mark.parametrize(
    ("answer", "expected", "reached"),
    [
        (raw_http.done, None, 1),
        (raw_http.events(b"event: message\ndata: {}\n\n"), OutcomeUnknown, 1),
        (raw_http.events(b""), OutcomeUnknown, 1),
        (raw_http.broken, OutcomeUnknown, 1),
        (raw_http.dropped, OutcomeUnknown, 1),
        (raw_http.status(202), OutcomeUnknown, 1),
        (raw_http.status(200), OutcomeUnknown, 1),
        (raw_http.status(302, location="http://169.254.169.254/latest?secret=1"), NotStarted, 1),
        (raw_http.status(307, location="http://127.0.0.1:1/mcp"), NotStarted, 1),
        (raw_http.status(400), OutcomeUnknown, 1),
        (raw_http.body(b'{"error": "busy"}', "application/json", status=400), OutcomeUnknown, 1),
        (raw_http.body(b'{"error": "busy"}', "application/json", status=429), NotStarted, 1),
        (raw_http.status(401), NotStarted, 1),
        (raw_http.status(403), NotStarted, 1),
        (raw_http.status(408), OutcomeUnknown, 1),
        (raw_http.status(429), NotStarted, 1),
        (raw_http.status(500), OutcomeUnknown, 1),
        (raw_http.status(502), OutcomeUnknown, 1),
        (raw_http.status(503), OutcomeUnknown, 1),
        (raw_http.status(404), NotStarted, 2),  # the session is lost, twice
        (raw_http.refused(-32603), ToolError, 1),
        (raw_http.refused(-32602, number=400), ToolError, 1),
        (raw_http.refused(-32603, number=500), OutcomeUnknown, 1),
        (raw_http.refused(-32020, number=400), NotStarted, 1),
        (raw_http.body(b"x" * 2 * MIB, "application/json"), ToolError, 1),
        (raw_http.body(b"[" * 5_000, "application/json"), ToolError, 1),
        (raw_http.body(b"{}", "application/json"), ToolError, 1),
        (
            raw_http.body(gzip.compress(b"x" * 9 * MIB), "application/json", encoding="gzip"),
            OutcomeUnknown,
            1,
        ),
        (raw_http.events(*[b"data: " + b"x" * 65_536] * 40), ToolError, 1),
        (raw_http.events(b"data: [" + b"[]," * 60_000 + b"[]]\n\n"), OutcomeUnknown, 1),
    ],
)
async def test_each_end_of_a_call_tells_whether_it_started(
    server: RawServer, source: McpTools, answer: Answer, expected: type[Exception] | None, reached: int
) -> None:
    server.answer = answer
    if expected is None:
        assert await source.call("web__act", {}, a_context()) == '"done"'
    else:
        with pytest.raises(expected) as raised:
            await source.call("web__act", {}, a_context())
        assert raised.type is expected or issubclass(raised.type, NotStarted)
        assert (expected is ToolError) == (not isinstance(raised.value, NotStarted | OutcomeUnknown))
    assert server.calls == reached
    server.answer = raw_http.done
    assert await source.call("web__act", {}, a_context()) == '"done"'


@pytest.mark.parametrize(("status", "number"), [(404, {"id": None}), (400, {"id": None}), (400, {})])
async def test_a_lost_session_is_opened_anew_and_the_call_is_sent_once(
    server: RawServer, source: McpTools, status: int, number: dict[str, None]
) -> None:
    server.session, server.unknown_session = "the server has restarted", (status, number)
    assert await source.call("web__act", {}, a_context()) == '"done"'
    assert server.calls == 1
    assert server.methods.count("initialize") == 2


async def test_a_cancelled_call_ends_at_the_server(server: RawServer, source: McpTools) -> None:
    began, gone = asyncio.Event(), asyncio.Event()
    server.answer = raw_http.held(began, gone)
    call = asyncio.create_task(source.call("web__act", {}, a_context()))
    await began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: "notifications/cancelled" in server.methods)


async def test_a_refused_call_breaks_no_other(server: RawServer, source: McpTools) -> None:
    began, gone = asyncio.Event(), asyncio.Event()
    server.answer = raw_http.held(began, gone)
    held = asyncio.create_task(source.call("web__act", {}, a_context()))
    await began.wait()
    server.answer = raw_http.status(401)
    with pytest.raises(NotStarted):
        await source.call("web__act", {}, a_context())
    server.answer = raw_http.done
    assert await source.call("web__act", {}, a_context()) == '"done"'
    assert not gone.is_set()
    assert not held.done()
    held.cancel()
    await asyncio.wait([held])


async def test_a_server_at_a_private_address_is_not_connected_to_unless_that_is_allowed(server: RawServer) -> None:
    async with running(replace(at(server.url), allow_private=False)) as source:
        with pytest.raises(SourceUnreachable, match=r"127\.0\.0\.1 is at 127\.0\.0\.1, a private address"):
            await source.refresh()
    assert not server.methods


async def test_a_server_that_is_down_is_not_called_and_its_tools_stay(caplog: pytest.LogCaptureFixture) -> None:
    async with raw_server() as server, running(at(server.url)) as source:
        await source.refresh()
        url = server.url
    async with running(at(url)) as source:
        with pytest.raises(SourceUnreachable, match="no connection"):
            await source.refresh()
    async with raw_server() as server, running(at(server.url)) as source:
        await source.refresh()
        listed = source.specs()
        await server.stop()
        for _ in range(4):
            with pytest.raises(NotStarted):
                await source.call("web__act", {}, a_context())
        with pytest.raises(NotStarted, match="is down, and is tried again in"):
            await source.call("web__act", {}, a_context())
        assert source.specs() == listed
        assert "no connection" in source.problem


async def test_a_server_that_comes_later_is_found_without_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnkeeper.tools.mcp.source.LOOK_AGAIN", 0.05)
    async with raw_server() as server:
        url = server.url
    async with running(at(url)) as source:
        with pytest.raises(SourceUnreachable):
            await source.refresh()
        assert source.listing == 0
        async with raw_server(int(url.rpartition(":")[2].partition("/")[0])):
            await until(lambda: source.listing == 1)
            assert [spec.name for spec in source.specs()] == ["web__act"]
            assert source.problem == ""


async def test_a_list_that_does_not_come_leaves_the_tools_as_they_were(
    server: RawServer, source: McpTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnkeeper.tools.mcp.session.LIST_TIME", 0.05)
    server.is_silent = True
    with pytest.raises(SourceUnreachable, match="does not list its tools within"):
        await source.refresh()
    assert [spec.name for spec in source.specs()] == ["web__act"]
    assert await source.call("web__act", {}, a_context()) == '"done"'


async def test_headers_come_from_the_environment_or_a_file_and_are_in_no_message(
    server: RawServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "token").write_text("s3cret-of-file\n")
    environ = {"TOKEN_FILE": str(tmp_path / "token"), "OTHER": "s3cret-of-variable"}
    table = at(server.url, headers={"Authorization": "Bearer ${TOKEN}", "X-Other": "${OTHER}"})
    with caplog.at_level(logging.DEBUG):
        async with running(table, environ) as source:
            await source.refresh()
            server.answer = raw_http.status(401)
            with pytest.raises(NotStarted):
                await source.call("web__act", {}, a_context())
    sent = [headers for headers in server.headers if "Authorization" in headers]
    assert {(headers["Authorization"], headers["X-Other"]) for headers in sent} == {
        ("Bearer s3cret-of-file", "s3cret-of-variable")
    }
    assert "s3cret" not in caplog.text
    async with running(table, {}) as source:
        with pytest.raises(SourceUnreachable, match="TOKEN is not set: set it, or TOKEN_FILE"):
            await source.refresh()


async def test_large_answers_grow_no_memory(server: RawServer, source: McpTools) -> None:
    server.answer = raw_http.body(b"x" * 20 * MIB, "application/json")
    before = resident(os.getpid())
    for _ in range(5):
        with pytest.raises(ToolError):
            await source.call("web__act", {}, a_context())
    assert resident(os.getpid()) - before < 60 * MIB  # the server holds 20 MiB in this process, too


async def test_a_name_that_resolves_differently_later_leads_nowhere_else(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved: list[str] = []
    port = server.url.rpartition(":")[2].partition("/")[0]

    def addresses_of(host: str) -> list[str]:
        resolved.append(host)
        return ["127.0.0.1"] if len(resolved) == 1 else ["127.0.0.2"]

    answer_names(monkeypatch, addresses_of)
    async with running(at(f"http://tools.test:{port}/mcp")) as source:
        await source.refresh()
        for _ in range(3):
            assert await source.call("web__act", {}, a_context()) == '"done"'
    assert resolved == ["tools.test"]
    assert {headers["Host"] for headers in server.headers} == {f"tools.test:{port}"}
