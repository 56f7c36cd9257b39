"""The sample of the Go helper behaves as that of the Python helper: `make tools-go` builds it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.tool_servers.served import a_context, connected, published
from turnkeeper.domain.tool import ReconciledState
from turnkeeper.tools.contract import NotStarted, Reconciled, SourceUnreachable, ToolError
from turnkeeper.tools.remote.source import RemoteTools
from turnkeeper.tools.remote.tokens import CallTokens

SAMPLE = "TURNKEEPER_GO_SAMPLE"
pytestmark = pytest.mark.skipif(SAMPLE not in os.environ, reason="it is built with Go: `make tools-go` runs it")
TOOL = "ledger__transfer"
TRANSFER = '{"amount":5,"to":"bob"}'
STATE = ReconciledState


@pytest.fixture
def tokens() -> CallTokens:
    return CallTokens()


@pytest_asyncio.fixture
async def address(tmp_path: Path, tokens: CallTokens) -> AsyncIterator[str]:
    async with published(tokens) as url:
        flags = ("--port", "0", "--folder", str(tmp_path), "--key-set", url, "--skew", "-5s")
        process = await asyncio.create_subprocess_exec(os.environ[SAMPLE], *flags, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        try:
            line = await process.stdout.readline()
            yield line.decode().split()[-1]
        finally:
            process.kill()
            await process.wait()


@pytest_asyncio.fixture
async def source(address: str, tokens: CallTokens) -> AsyncIterator[RemoteTools]:
    async with connected(address, tokens) as source:
        await source.refresh()
        yield source


async def test_a_call_takes_effect_once(source: RemoteTools) -> None:
    lines: list[str] = []
    context = a_context(arguments_json=TRANSFER, report=lines.append)
    assert json.loads(await source.call(TOOL, {}, context)) == "5 to bob: done"
    assert json.loads(await source.call(TOOL, {}, replace(context, attempt=2))) == "5 to bob: done"
    assert await source.reconcile(TOOL, context) == Reconciled(state=STATE.DONE, result_json='"5 to bob: done"')


async def test_not_started_is_kept_as_a_promise(source: RemoteTools) -> None:
    context = a_context(arguments_json=TRANSFER, attempt=2)
    assert await source.reconcile(TOOL, context) == Reconciled(state=STATE.NOT_STARTED)
    for attempt in (1, 2):
        with pytest.raises(NotStarted, match="did not run"):
            await source.call(TOOL, {}, replace(context, attempt=attempt))
    assert json.loads(await source.call(TOOL, {}, replace(context, attempt=3))) == "5 to bob: done"


async def test_a_failure_is_told_with_its_words(source: RemoteTools) -> None:
    with pytest.raises(ToolError, match="above 0"):
        await source.call(TOOL, {}, a_context(arguments_json='{"amount":0,"to":"bob"}'))


async def test_a_token_by_another_key_is_refused(address: str) -> None:
    async with connected(address, CallTokens()) as source:
        with pytest.raises(SourceUnreachable, match="UNAUTHENTICATED"):
            await source.refresh()
        source._foreign = {TOOL: "transfer"}  # noqa: SLF001 - as listed before
        with pytest.raises(NotStarted, match="token"):
            await source.call(TOOL, {}, a_context(arguments_json=TRANSFER))
