"""The contract of tool sources about progress: watchers see how far a call is, while it runs, in short plain lines."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contracts.tool_sources import SOURCES, SuiteTools
from tests.processes import until
from turnkeeper.domain.tool import ToolOutcome


@pytest_asyncio.fixture(params=list(SOURCES))
async def tools(request: pytest.FixtureRequest) -> AsyncIterator[SuiteTools]:
    async with SOURCES[request.param]() as offered:
        yield offered


def lines_of(tools: SuiteTools) -> list[str]:
    """Returns what a watcher that comes now is shown."""
    progress = tools.feed.progress
    return [line.message for line in progress.since(0, last_seq=0)] if progress is not None else []


async def test_progress_is_shown_while_the_call_runs_and_no_longer(tools: SuiteTools, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    call = asyncio.create_task(tools.call("advance", file=str(go_on)))
    await until(lambda: bool(lines_of(tools)))
    (line,) = lines_of(tools)
    assert line.removesuffix(" 1 of 2") == r"half way \u202e \u001b[2J", "one line, without what is not seen"
    assert not call.done()
    go_on.touch()
    assert await call == (ToolOutcome.OK, "done")
    assert not lines_of(tools)
