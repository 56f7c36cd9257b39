"""The scripted model's own HTTP surface, as a plain client sees it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from turnkeeper.model.exchanges import Outcome
from turnkeeper.model.script import Reply, Script, ScriptedCall, ScriptedFailure
from turnkeeper.model.scripted import ScriptedModel

QUESTION = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        yield session


def address(model: ScriptedModel, path: str) -> str:
    return model.base_url.removesuffix("/v1") + path


async def test_without_a_script_it_echoes(http: aiohttp.ClientSession) -> None:
    async with ScriptedModel() as model, http.post(f"{model.base_url}/chat/completions", json=QUESTION) as answer:
        assert (await answer.json())["choices"][0]["message"]["content"] == "You said: hi"


async def test_health_and_models(http: aiohttp.ClientSession) -> None:
    async with ScriptedModel(Script(replies=(Reply(),), models=("a", "b"))) as model:
        async with http.get(address(model, "/healthz")) as health:
            assert (health.status, await health.text()) == (200, "ok\n")
        async with openai.AsyncOpenAI(base_url=model.base_url, api_key="none") as client:
            assert [model.id async for model in client.models.list()] == ["a", "b"]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_vendors_own_client_understands_it(stream: bool) -> None:
    call = ScriptedCall(name="t", arguments='{"a":1}')
    script = Script(replies=(Reply(text="Grüße 世界", chunk=2, tool_calls=(call,)),))
    async with (
        ScriptedModel(script) as model,
        openai.AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client,
    ):
        if stream:
            async with client.chat.completions.stream(
                model="m", messages=[{"role": "user", "content": "hi"}], stream_options={"include_usage": True}
            ) as chunks:
                completion = await chunks.get_final_completion()
        else:
            completion = await client.chat.completions.create(  # type: ignore[assignment]
                model="m", messages=[{"role": "user", "content": "hi"}]
            )
    choice = completion.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Grüße 世界", "tool_calls")
    assert choice.message.tool_calls
    tool_call = choice.message.tool_calls[0]
    assert tool_call.type == "function"
    assert (tool_call.function.name, tool_call.function.arguments) == ("t", '{"a":1}')
    assert completion.usage
    assert completion.usage.prompt_tokens > 0


async def test_it_lists_and_drops_the_requests_it_received(http: aiohttp.ClientSession) -> None:
    async with ScriptedModel(Script(replies=(Reply(match="hi", fail=ScriptedFailure.SERVER_ERROR),))) as model:
        await http.post(
            f"{model.base_url}/chat/completions", json=QUESTION, headers={"Authorization": "Bearer sk-secret"}
        )
        await http.post(f"{model.base_url}/chat/completions", json={**QUESTION, "messages": []})
        async with http.get(address(model, "/requests")) as answer:
            text, exchanges = await answer.text(), await answer.json()
        assert [(exchange["number"], exchange["rule"], exchange["outcome"]) for exchange in exchanges] == [
            (1, 1, "failed"),
            (2, 0, "no_rule"),
        ]
        assert exchanges[0]["body"] == QUESTION
        assert "sk-secret" not in text
        async with http.delete(address(model, "/requests")) as answer:
            assert answer.status == 204
        async with http.get(address(model, "/requests")) as answer:
            assert await answer.json() == []


async def test_only_the_latest_requests_are_kept(http: aiohttp.ClientSession) -> None:
    async with ScriptedModel() as model:
        for _ in range(203):
            await http.post(f"{model.base_url}/chat/completions", json=QUESTION)
        assert [exchange.number for exchange in model.exchanges.all()] == list(range(4, 204))


async def test_a_bad_request_is_refused_with_its_reason(http: aiohttp.ClientSession) -> None:
    async with ScriptedModel() as model, http.post(f"{model.base_url}/chat/completions", data="{") as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["message"] == "the body is not JSON"


@pytest.mark.parametrize("how", list(ScriptedFailure))
async def test_failures_without_a_stream(http: aiohttp.ClientSession, how: ScriptedFailure) -> None:
    async with ScriptedModel(Script(replies=(Reply(text="x" * 100, fail=how),))) as model:
        request = asyncio.ensure_future(_ask(http, model))
        if how in (ScriptedFailure.STALL, ScriptedFailure.SLOW_FIRST_TOKEN, ScriptedFailure.COMMENTS):
            await model.exchanges.until(bool)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await model.exchanges.until(lambda exchanges: exchanges[-1].outcome is Outcome.DISCONNECTED)
        elif how in (ScriptedFailure.REFUSE, ScriptedFailure.CUT):
            with pytest.raises(aiohttp.ClientError):
                await request
        elif how in (ScriptedFailure.EMPTY, ScriptedFailure.BAD_JSON):
            with pytest.raises(ValueError, match=r"no body|Unterminated|Expecting"):
                await request
        else:
            answer = await request
            assert "error" in answer or answer["choices"][0]["finish_reason"] is None


async def test_it_stops_though_a_caller_waits(http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(5):
        async with ScriptedModel(Script(replies=(Reply(fail=ScriptedFailure.STALL),))) as model:
            request = asyncio.ensure_future(_ask(http, model, stream=True))
            await model.exchanges.until(bool)
        with pytest.raises((aiohttp.ClientError, ValueError)):
            await request


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
async def test_it_serves_this_machine_only(host: str) -> None:
    with pytest.raises(ValueError, match=r"loopback|not appear to be"):
        async with ScriptedModel(host=host):
            pass


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "::1"])
async def test_every_loopback_address_will_do(http: aiohttp.ClientSession, host: str) -> None:
    async with ScriptedModel(host=host) as model, http.get(f"{model.base_url}/models") as answer:
        assert answer.status == 200


async def _ask(http: aiohttp.ClientSession, model: ScriptedModel, *, stream: bool = False) -> Any:
    async with http.post(f"{model.base_url}/chat/completions", json={**QUESTION, "stream": stream}) as answer:
        body = await answer.json(content_type=None)
        if body is None:
            raise ValueError("no body")
        return body
