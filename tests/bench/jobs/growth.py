"""What a long conversation costs whoever only sends it: the bytes that the model must be sent in any case."""

from typing import Any

import aiohttp
import orjson

from tests.bench.figures import Invalid
from tests.bench.runner import Channels
from turnkeeper.domain.message import Message, Role
from turnkeeper.model.contract import ModelAnswer, ModelRequest
from turnkeeper.model.openai import OpenAIModel, Provider

INSTRUCTIONS = "You are brief."


class _Kept:
    """From one job to the next: what is made before anything is measured."""

    bodies: dict[int, bytes]
    requests: dict[int, ModelRequest]
    client: aiohttp.ClientSession
    model: OpenAIModel


async def prepare(_channels: Channels, *, url: str, message: str, answer: str, turns: list[int]) -> None:
    """Conversations up to each of these turns, ready to be sent."""
    said = {each: _conversation(each, message, answer) for each in turns}
    _Kept.requests = {each: ModelRequest(model="bench", messages=messages) for each, messages in said.items()}
    _Kept.bodies = {
        each: orjson.dumps(
            {
                "model": "bench",
                "stream": True,
                "stream_options": {"include_usage": True},
                "messages": [{"role": message.role.lower(), "content": message.text} for message in messages],
            }
        )
        for each, messages in said.items()
    }
    _Kept.client = aiohttp.ClientSession(base_url=f"{url}/", headers={"Content-Type": "application/json"})
    _Kept.model = OpenAIModel.connect(Provider(base_url=url, api_key="none"))


async def send_bytes(_channels: Channels, *, turn: int, count: int) -> int:
    """The finished body of that turn, so many times, and its answer read to the end. Gives the body's length."""
    for _ in range(count):
        async with _Kept.client.post("chat/completions", data=_Kept.bodies[turn]) as response:
            if not (await response.read()).endswith(b"data: [DONE]\n\n"):
                raise Invalid("the model gave no whole answer")
    return len(_Kept.bodies[turn])


async def ask_model(_channels: Channels, *, turn: int, count: int, answer: str) -> None:
    """The same through our own model client, so many times."""
    for _ in range(count):
        last: Any = None
        async for each in _Kept.model.stream(_Kept.requests[turn]):
            last = each
        if not isinstance(last, ModelAnswer) or last.text != answer:
            raise Invalid("the model gave another answer")


async def forget_requests(_channels: Channels, *, url: str) -> None:
    """Let the model forget what it was asked."""
    async with aiohttp.ClientSession() as client, client.delete(_requests(url)):
        pass


async def last_request(_channels: Channels, *, url: str) -> int:
    """How many messages the model was sent last."""
    async with aiohttp.ClientSession() as client, client.get(_requests(url)) as response:
        return len((await response.json())[-1]["body"]["messages"])


def _requests(url: str) -> str:
    return url.removesuffix("/v1") + "/requests"


def _conversation(turns: int, message: str, answer: str) -> tuple[Message, ...]:
    """As it is sent for this turn: the answers of all turns before it are in it."""
    user, model = Message(role=Role.USER, text=message), Message(role=Role.ASSISTANT, text=answer)
    system = Message(role=Role.SYSTEM, text=INSTRUCTIONS)
    return (system, *(user, model) * (turns - 1), user)
