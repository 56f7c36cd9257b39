"""What a model's server is sent, and by which connections."""

import openai
import orjson
import pytest
from aiohttp import web

from tests.contracts.models import KEY, WEATHER, Stage, answer, asking
from turnkeeper.domain.message import Message, Role, ToolRequest
from turnkeeper.model.contract import ModelRequest
from turnkeeper.model.script import Reply


class TestRequests:
    async def test_the_whole_request_arrives(self, stage: Stage) -> None:
        model = await stage.play(Reply(text="ok"))
        call = ToolRequest(tool_call_id="c1", tool="get_weather", arguments_json='{"city":"Zürich"}')
        messages = (
            Message(role=Role.SYSTEM, text="Be brief."),
            Message(role=Role.USER, text="Wetter?"),
            Message(role=Role.ASSISTANT, tool_requests=(call,)),
            Message(role=Role.TOOL, text="rain 世界", tool_call_id="c1"),
        )
        await answer(
            model,
            ModelRequest(
                model="m",
                messages=messages,
                tools=(WEATHER,),
                max_output_tokens=99,
                temperature=0.5,
                response_schema_json='{"type":"object"}',
            ),
        )
        assert orjson.loads(stage.server.exchanges.all()[0].body) == {
            "model": "m",
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Wetter?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "get_weather", "arguments": '{"city":"Zürich"}'},
                        }
                    ],
                },
                {"role": "tool", "content": "rain 世界", "tool_call_id": "c1"},
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "get_weather",
                        "description": "The weather in a city.",
                        "parameters": orjson.loads(WEATHER.schema_json),
                    },
                }
            ],
            "max_tokens": 99,
            "temperature": 0.5,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}},
            },
        }

    @pytest.mark.parametrize(("close", "expected"), [(True, "close"), (False, "keep-alive")])
    async def test_connections_are_kept_or_closed_as_configured(self, stage: Stage, close: bool, expected: str) -> None:
        model = await stage.play(Reply(text="ok"), close=close)
        await answer(model, asking("hello"))
        assert stage.server.exchanges.all()[0].headers["connection"] == expected

    @pytest.mark.parametrize("size", [200_000, 262_144, 700_000, 2_500_000])
    async def test_a_long_request_arrives_whole_and_says_its_length(self, stage: Stage, size: int) -> None:
        model = await stage.play(Reply(text="ok"))
        await answer(model, asking("h" * size))
        exchange = stage.server.exchanges.all()[0]
        assert orjson.loads(exchange.body)["messages"][-1]["content"] == "h" * size
        assert int(exchange.headers["content-length"]) == len(exchange.body)
        assert "transfer-encoding" not in exchange.headers


class TestHeaders:
    async def test_each_call_has_the_headers_of_the_openai_client(self, stage: Stage) -> None:
        """Also those that its variables ask for, and the cookies that the server has set."""
        sent: list[dict[str, str]] = []

        async def respond(request: web.Request) -> web.Response:
            sent.append({name.lower(): value for name, value in request.headers.items()})
            choice = {"index": 0, "delta": {"content": "ok"}, "finish_reason": "stop"}
            event = b"data: " + orjson.dumps({"id": "1", "choices": [choice]}) + b"\n\ndata: [DONE]\n\n"
            response = web.Response(body=event, content_type="text/event-stream")
            response.set_cookie("place", "seven")
            return response

        app = web.Application()
        app.router.add_post("/v1/chat/completions", respond)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            model = stage.connect(base_url)
            for _ in range(2):
                await answer(model, asking("hello"))
            async with openai.AsyncOpenAI(
                base_url=base_url, api_key=KEY, http_client=openai.DefaultAioHttpClient(), max_retries=0
            ) as client:
                for _ in range(2):
                    chunks = await client.chat.completions.create(model="m", messages=[], stream=True)
                    assert [chunk async for chunk in chunks]
        finally:
            await runner.cleanup()
        *ours, first, second = [{k: v for k, v in headers.items() if k not in _OF_ONE_CALL} for headers in sent]
        assert ours == [first, second]
        assert "cookie" not in first
        assert second["cookie"] == "place=seven"


_OF_ONE_CALL = {"content-length", "x-stainless-read-timeout", "x-stainless-helper-method"}
