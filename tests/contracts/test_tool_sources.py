"""The contract of tool sources: whatever a tool does, its call alone ends, with a result for the model."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contracts.client_tools import client_tools
from tests.contracts.tool_sources import SOURCES, Source, SuiteTools
from tests.processes import until
from turnkeeper.domain.tool import ToolOutcome
from turnkeeper.tools.results import RESULT_BYTES

SOON = timedelta(seconds=1)
ODD = "naïve \u202e reversed \u200b \U0001d518\U0001d52b 👩‍👩‍👧 \u0000 \ufffe end"
"""Beside other planes: what reorders text, what is invisible, NUL, and a number that is no character."""


@pytest_asyncio.fixture(params=[*SOURCES, "client"])
async def tools(request: pytest.FixtureRequest, mongo_uri: str, tmp_path: Path) -> AsyncIterator[SuiteTools]:
    sources: dict[str, Source] = {**SOURCES, "client": partial(client_tools, mongo_uri, tmp_path)}
    async with sources[request.param]() as offered:
        yield offered


async def test_a_result_comes_back_as_it_is(tools: SuiteTools) -> None:
    assert await tools.call("echo", text="hello") == (ToolOutcome.OK, "hello")


async def test_a_tool_that_is_not_there_is_not_found(tools: SuiteTools) -> None:
    assert tools.problem("eco", "{}") is None


@pytest.mark.parametrize("arguments", ["{}", '{"text": 5}', '{"text": null}', "[]", "{", '{"text": "a", "more": 1}'])
async def test_bad_arguments_do_not_reach_the_tool(tools: SuiteTools, arguments: str) -> None:
    assert tools.problem("echo", arguments)
    assert tools.problem("echo", '{"text": "a"}') == ""


async def test_a_tools_own_words_reach_the_model(tools: SuiteTools) -> None:
    assert await tools.call("refuse") == (ToolOutcome.FAILED, {"error": "There is no such order."})


async def test_a_crash_fails_its_own_call_alone(tools: SuiteTools) -> None:
    outcome, result = await tools.call("crash")
    assert outcome is ToolOutcome.FAILED
    assert result["error"]
    assert await tools.call("echo", text="still here") == (ToolOutcome.OK, "still here")


@pytest.mark.parametrize("size", [RESULT_BYTES - 1, 200_000, 10_000_000])
async def test_an_oversized_result_is_a_failure_with_words(tools: SuiteTools, size: int) -> None:
    outcome, result = await tools.call("fill", size=size)
    assert outcome is ToolOutcome.FAILED
    assert "bytes" in result["error"]
    assert await tools.call("fill", size=RESULT_BYTES - 2) == (ToolOutcome.OK, "x" * (RESULT_BYTES - 2))


async def test_null_is_a_result(tools: SuiteTools) -> None:
    assert await tools.call("nothing") == (ToolOutcome.OK, None)


async def test_deep_json_is_a_result_or_a_failure_with_words(tools: SuiteTools) -> None:
    outcome, result = await tools.call("nest", levels=50)
    assert outcome is ToolOutcome.OK
    for _ in range(49):
        (result,) = result
    assert result == []
    outcome, result = await tools.call("nest", levels=3_000)
    assert outcome is ToolOutcome.FAILED
    assert result["error"]


@pytest.mark.parametrize("text", [ODD, "", '"', "\\u0000", "x" * 1_000], ids=["odd", "none", "quote", "escape", "long"])
async def test_odd_text_comes_back_as_it_is(tools: SuiteTools, text: str) -> None:
    assert await tools.call("echo", text=text) == (ToolOutcome.OK, text)


async def test_a_call_ends_with_its_time_and_its_tool_is_cancelled(tools: SuiteTools, tmp_path: Path) -> None:
    file = tmp_path / "late"
    outcome, result = await tools.call("wait", timeout=SOON, file=str(file))
    assert outcome in tools.late
    assert result, "the model reads why"
    await until(file.with_suffix(".cancelled").exists)
    assert await tools.call("echo", text="still here") == (ToolOutcome.OK, "still here")


async def test_a_cancelled_call_ends_its_tool(tools: SuiteTools, tmp_path: Path) -> None:
    file = tmp_path / "cut"
    call = asyncio.create_task(tools.call("wait", file=str(file)))
    await until(file.with_suffix(".begun").exists)
    await tools.cancel()
    await asyncio.wait([call])
    assert call.cancelled() or call.result()[0] is ToolOutcome.CANCELLED
    await until(file.with_suffix(".cancelled").exists)
    assert await tools.call("echo", text="still here") == (ToolOutcome.OK, "still here")


async def test_many_calls_at_once_get_each_its_own_result(tools: SuiteTools) -> None:
    texts = [f"text {number}" for number in range(100)]
    results = await asyncio.gather(*(tools.call("echo", text=text) for text in texts))
    assert results == [(ToolOutcome.OK, text) for text in texts]


async def test_a_flood_of_progress_delays_no_result(tools: SuiteTools) -> None:
    assert await tools.call("flood", lines=5_000) == (ToolOutcome.OK, "done")


async def test_a_tool_that_changes_is_another_one_to_those_who_approve(tools: SuiteTools) -> None:
    before = tools.spec("echo")
    await tools.change()
    now = tools.spec("echo")
    assert (now.name, now.source) == (before.name, before.source)
    assert now.schema_hash != before.schema_hash
    assert now.description_hash != before.description_hash
    assert tools.problem("echo", '{"text": "a"}')
    assert await tools.call("echo", text="ab", times=2) == (ToolOutcome.OK, "abab")
