"""What the model suite runs on: a stage where a script is played to a model over real HTTP."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from typing import Self

from turnkeeper.domain.message import Message, Role
from turnkeeper.domain.tool import ToolClass, ToolSpec
from turnkeeper.model.contract import Model, ModelAnswer, ModelFailure, ModelRequest
from turnkeeper.model.deadline_watch import Deadlines
from turnkeeper.model.openai import OpenAIModel
from turnkeeper.model.openai_client import Provider
from turnkeeper.model.request_shape import Refusals
from turnkeeper.model.script import Reply, Script
from turnkeeper.model.scripted import ScriptedModel

KEY = "sk-canary-of-this-suite"
WEATHER = ToolSpec(
    name="get_weather",
    description="The weather in a city.",
    schema_json='{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}',
    tool_class=ToolClass.READ_ONLY,
    source="test",
)


def asking(text: str, *, model: str = "scripted", tools: tuple[ToolSpec, ...] = ()) -> ModelRequest:
    messages = (
        Message(role=Role.SYSTEM, text="You are a helpful assistant."),
        Message(role=Role.USER, text=text),
    )
    return ModelRequest(model=model, messages=messages, tools=tools)


def short(*, first_token: float = 20, between_tokens: float = 20, total: float = 20, connect: float = 10) -> Deadlines:
    """Deadlines in seconds; those a test does not name are never met."""
    return Deadlines(
        connect=timedelta(seconds=connect),
        first_token=timedelta(seconds=first_token),
        between_tokens=timedelta(seconds=between_tokens),
        total=timedelta(seconds=total),
    )


class Stage:
    """Starts what a test needs, ends all of it."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self.server: ScriptedModel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def play(self, *replies: Reply, deadlines: Deadlines | None = None, close: bool = False) -> OpenAIModel:
        """Returns a model whose server sends these replies."""
        self.server = await self._stack.enter_async_context(ScriptedModel(Script(replies=replies)))
        return self.connect(self.server.base_url, deadlines=deadlines, close=close)

    def connect(self, base_url: str, *, deadlines: Deadlines | None = None, close: bool = False) -> OpenAIModel:
        return self.open(Provider(base_url=base_url, api_key=KEY, close_connections=close), deadlines=deadlines)

    def open(
        self, provider: Provider, *, deadlines: Deadlines | None = None, refusals: Refusals | None = None
    ) -> OpenAIModel:
        model = OpenAIModel.connect(provider, deadlines=deadlines or short(), refusals=refusals)
        self._stack.push_async_callback(model.close)
        return model


@asynccontextmanager
async def saying(
    text: str | bytes,
    *,
    then: str = "",
    hold: bool = False,
    ports: list[int] | None = None,
    requests: list[bytes] | None = None,
) -> AsyncIterator[str]:
    """Serves `text` for every request; yields its base URL. Adds the body of each first request to `requests`.

    After it, it sends `then` for ever; or nothing, until the caller leaves (`hold`); or it takes the connection's next
    request and notes the caller's port for each (`ports`); or, with none of these, it hangs up.
    """

    talks: set[asyncio.Task[None]] = set()
    data = text.encode() if isinstance(text, str) else text

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            body = await _take_request(reader)
            if requests is not None:
                requests.append(body)
            writer.write(data)
            while ports is not None:
                ports.append(writer.get_extra_info("peername")[1])
                await _take_request(reader)
                writer.write(data)
            while then:
                writer.write(then.encode())
                await writer.drain()
            if hold:
                await reader.read()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(talk(reader, writer))
        talks.add(task)
        with suppress(asyncio.CancelledError, ConnectionError):
            await task
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(keep, "127.0.0.1") as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def _take_request(reader: asyncio.StreamReader) -> bytes:
    """Returns the body, all of it: to hang up on unread bytes would be a reset."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return await reader.readexactly(int(length[1]) if length else 0)


async def answer(model: Model, request: ModelRequest) -> tuple[list[str], ModelAnswer]:
    """All of a call that must succeed: its deltas, its answer. Checks what every call promises."""
    *deltas, last = [item async for item in model.stream(request)]
    assert isinstance(last, ModelAnswer)
    texts = [delta for delta in deltas if isinstance(delta, str)]
    assert len(texts) == len(deltas), "one answer, the last"
    assert all(texts), "no delta is empty"
    assert last.text == "".join(texts)
    assert last.usage.model_calls == 1
    return texts, last


async def fail(model: Model, request: ModelRequest | None = None) -> tuple[str, ModelFailure]:
    """All of a call that must fail: the text up to there, and the failure."""
    texts: list[str] = []
    try:
        async with asyncio.timeout(10):
            async for item in model.stream(request or asking("hello")):
                assert isinstance(item, str), "a failed call gives no answer"
                texts.append(item)
    except ModelFailure as failure:
        return "".join(texts), failure
    raise AssertionError("the call neither answered nor failed")
