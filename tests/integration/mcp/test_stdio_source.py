"""Tools of an MCP server that is a process: what calls return, and what a server cannot do to a replica."""

import asyncio
import json
import logging
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from tests.mcp_servers.sources import HOSTILE, a_context, hostile, program, running
from tests.processes import alive, children, resident, until
from turnkeeper.tools.contract import NotStarted, OutcomeUnknown, SourceUnreachable, ToolError
from turnkeeper.tools.mcp.source import McpTools
from turnkeeper.tools.naming import full_name
from turnkeeper.tools.progress import LONGEST
from turnkeeper.tools.results import UnfitResult

MIB = 1 << 20
SUITE = HOSTILE.with_name("suite_stdio.py")
"""A server that reads its list from a file."""


@pytest_asyncio.fixture
async def source(tmp_path: Path) -> AsyncIterator[McpTools]:
    """The hostile server's tools, listed."""
    async with running(hostile(tmp_path)) as tools:
        await tools.refresh()
        yield tools


def recorded(folder: Path, name: str) -> list[object]:
    """Returns the lines of a file that the server wrote."""
    file = folder / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


async def test_a_call_returns_the_tools_result_and_passes_key_and_attempt_on(source: McpTools) -> None:
    odd: dict[str, object] = {"text": "Grüße, 你好 \u202e 🦊", "nothing": None, "deep": [[[[1.5]]]]}
    assert json.loads(json.loads(await source.call("odd__echo", odd, a_context()))) == odd
    meta = json.loads(json.loads(await source.call("odd__meta", {}, a_context())))
    assert meta["turnkeeper/idempotency-key"] == "key-1"
    assert meta["turnkeeper/attempt"] == 3
    assert source.revision == "2025-11-25"
    assert json.loads(await source.call("odd__structured", {}, a_context())) == {"count": 3}
    assert json.loads(await source.call("odd__nothing", {}, a_context())) is None


async def test_the_list_has_legal_names_and_leaves_out_what_cannot_be_offered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(hostile(tmp_path)) as source:
        await source.refresh()
    specs = {spec.name: spec for spec in source.specs()}
    assert specs["odd__echo"].description == "Does echo."
    assert specs[full_name("odd", "über tool.v2")].foreign_name == "über tool.v2"
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in specs)
    assert "odd__refused" not in specs
    assert "its tool 'refused' is not offered: its schema refers to another document" in caplog.text


@pytest.mark.parametrize(
    ("tool", "arguments", "error", "message"),
    [
        ("fail", {}, ToolError, "The printer is out of paper."),
        ("misfit", {}, ToolError, "its result does not fit its own schema of results: count: 'three' is not of type"),
        ("ask", {}, None, "Elicitation not supported"),
        ("big", {"bytes": 70_000}, UnfitResult, "at most 65536 are passed on"),
        (
            "big",
            {"bytes": 10 * MIB},
            ToolError,
            "cannot be passed on: it has 104\\d{5} bytes; at most 1048576 are read",
        ),
        ("many", {}, ToolError, "cannot be passed on: it cannot be read as a message, or has too many parts"),
        ("nested", {}, ToolError, "cannot be passed on: it cannot be read as a message"),
        ("no_result", {}, OutcomeUnknown, "an answer that cannot be read"),
        ("die", {}, OutcomeUnknown, "broke before it answered; the tool may have taken effect"),
        ("endless", {}, OutcomeUnknown, "broke before it answered"),
        ("chatter", {}, None, "done"),
        ("flood_stderr", {"bytes": 40 * MIB}, None, "done"),
        ("flood_progress", {}, None, "done"),
    ],
)
async def test_a_server_that_misbehaves_fails_that_call_alone(
    source: McpTools, tool: str, arguments: dict[str, object], error: type[Exception] | None, message: str
) -> None:
    if error is None:
        assert message in await source.call(f"odd__{tool}", arguments, a_context())
    else:
        with pytest.raises(error, match=message):
            await source.call(f"odd__{tool}", arguments, a_context())
    assert await source.call("odd__echo", {"still": "there"}, a_context())  # by another process, if that one is gone


async def test_floods_grow_neither_memory_nor_files_nor_the_log(
    source: McpTools, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resident(os.getpid())
    with caplog.at_level(logging.DEBUG, logger="turnkeeper"):
        for _ in range(3):
            await source.call("odd__flood_stderr", {"bytes": 20 * MIB}, a_context())
            with pytest.raises(ToolError):
                await source.call("odd__big", {"bytes": 20 * MIB}, a_context())
            await source.call("odd__chatter", {}, a_context())
    assert resident(os.getpid()) - before < 16 * MIB
    assert sum(len(record.getMessage()) for record in caplog.records) < 1_000
    assert sum(file.stat().st_size for file in os.scandir(tmp_path)) < 10_000


async def test_progress_is_reported_in_short_lines_that_end_with_the_numbers(source: McpTools) -> None:
    lines: list[str] = []
    await source.call("odd__flood_progress", {}, a_context(report=lines.append))
    assert lines
    assert all(len(line) <= LONGEST and line.endswith(" of 500") for line in lines)


async def test_a_cancelled_call_is_cancelled_at_the_server(source: McpTools, tmp_path: Path) -> None:
    call = asyncio.create_task(source.call("odd__hold", {}, a_context()))
    await until(lambda: recorded(tmp_path, "calls") == ["hold"])
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: bool(recorded(tmp_path, "cancelled")))
    assert await source.call("odd__echo", {}, a_context())
    assert len(recorded(tmp_path, "starts")) == 1


async def test_calls_end_at_once_with_the_servers_process(source: McpTools, tmp_path: Path) -> None:
    calls = [asyncio.create_task(source.call("odd__hold", {}, a_context())) for _ in range(5)]
    await until(lambda: len(recorded(tmp_path, "calls")) == 5)
    with pytest.raises(OutcomeUnknown):
        await source.call("odd__die", {}, a_context())
    for call in calls:
        with pytest.raises(OutcomeUnknown):
            await call
    assert await source.call("odd__echo", {}, a_context())
    assert len(recorded(tmp_path, "starts")) == 2


async def test_a_list_that_changes_is_read_again(source: McpTools) -> None:
    before = source.listing
    await source.call("odd__change", {"name": "newcomer"}, a_context())
    await until(lambda: source.listing != before)
    assert "odd__newcomer" in [spec.name for spec in source.specs()]
    assert await source.call("odd__newcomer", {}, a_context()) == '"I am new."'


async def test_a_tool_that_vanished_with_a_restart_is_not_called(source: McpTools, tmp_path: Path) -> None:
    before = source.listing
    await source.call("odd__change", {"name": "newcomer"}, a_context())
    await until(lambda: source.listing != before)
    with pytest.raises(OutcomeUnknown):
        await source.call("odd__die", {}, a_context())
    with pytest.raises(NotStarted, match="does not have the tool any more"):
        await source.call("odd__newcomer", {}, a_context())
    assert "odd__newcomer" not in [spec.name for spec in source.specs()]


async def test_a_call_of_a_tool_that_is_another_one_by_now_does_not_start(tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tool = {"name": "echo", "description": "before", "inputSchema": {"type": "object"}}
    tools.write_text(json.dumps([tool]))
    table = program("suite", sys.executable, "-I", "-S", str(SUITE), str(tmp_path))
    others = children(os.getpid())
    async with running(replace(table, idle=timedelta(milliseconds=50))) as source:
        await source.refresh()
        assert await source.call("suite__echo", {"text": "a"}, a_context()) == '"a"'
        await until(lambda: set(children(os.getpid())) <= set(others))  # idle: the tool may be another one by now
        tools.write_text(json.dumps([{**tool, "description": "after"}]))
        with pytest.raises(NotStarted, match="The tool has changed since this call was decided on"):
            await source.call("suite__echo", {"text": "a"}, a_context())
        assert [spec.description for spec in source.specs()] == ["after"]
        assert await source.call("suite__echo", {"text": "b"}, a_context()) == '"b"'


async def test_a_server_that_dies_again_and_again_is_left_alone_for_a_while(source: McpTools, tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(OutcomeUnknown):
            await source.call("odd__die", {}, a_context())
    with pytest.raises(NotStarted, match="is down, and is tried again in"):
        await source.call("odd__die", {}, a_context())
    assert len(recorded(tmp_path, "starts")) == 3
    await until(lambda: "it ended with status 7" in source.problem)
    assert [spec.name for spec in source.specs()]  # as last listed


async def test_an_idle_server_is_ended_and_starts_again_with_the_next_call(tmp_path: Path) -> None:
    async with running(hostile(tmp_path, idle=timedelta(milliseconds=50))) as source:
        await source.refresh()
        (first,) = recorded(tmp_path, "starts")
        await until(lambda: not alive(first))  # type: ignore[arg-type]
        assert source.problem == ""
        assert await source.call("odd__echo", {}, a_context())
        assert len(recorded(tmp_path, "starts")) == 2


async def test_a_server_that_cannot_start_costs_no_start_and_states_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(hostile(tmp_path, "--fails")) as source:
        with pytest.raises(SourceUnreachable, match="ended with status 1; its last words: the license has expired"):
            await source.refresh()
        with pytest.raises(SourceUnreachable):
            source.specs()
    async with running(replace(hostile(tmp_path), command=("no-such-program",))) as source:
        with pytest.raises(SourceUnreachable, match="there is no program 'no-such-program'"):
            await source.refresh()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


async def test_a_server_receives_none_of_the_services_secrets(tmp_path: Path) -> None:
    table = hostile(tmp_path)
    secret = tmp_path / "token"
    secret.write_text("from a file\n")
    given = replace(table, env={"OWN": "${TOKEN}"}, cwd=str(tmp_path))
    environ = {"PATH": "/usr/bin:/bin", "HOME": "/root", "MONGODB_URI": "secret", "TOKEN_FILE": str(secret)}
    async with running(given, environ) as source:
        await source.refresh()
        received = json.loads(json.loads(await source.call("odd__environment", {}, a_context())))
    assert set(received["names"]) - {"LC_CTYPE"} == {"PATH", "HOME", "OWN"}
    assert received["folder"] == str(tmp_path)


async def test_what_a_server_started_ends_with_it_also_what_left_its_session(source: McpTools, tmp_path: Path) -> None:
    grandchild = int(json.loads(await source.call("odd__spawn", {}, a_context())))
    assert alive(grandchild)
    with pytest.raises(OutcomeUnknown):
        await source.call("odd__die", {}, a_context())
    await until(lambda: not alive(grandchild))


async def test_a_server_that_ignores_the_end_of_its_input_is_ended(tmp_path: Path) -> None:
    async with running(hostile(tmp_path, "--deaf")) as source:
        await source.refresh()
        (server,) = recorded(tmp_path, "starts")
    assert not alive(server)  # type: ignore[arg-type]
