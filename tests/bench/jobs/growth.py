"""The cost of sending a long conversation to the model, without the service: the floor of a late turn."""

from typing import Any

import aiohttp
import orjson

from tests.bench.figures import Invalid
from tests.bench.runner import Channels
from turnkeeper.domain.message import Message, Role
from turnkeeper.model.contract import ModelAnswer, ModelRequest
from turnkeeper.model.openai import OpenAIModel
from turnkeeper.model.openai_client import Provider

INSTRUCTIONS = "You are brief."


class _Kept:
    """Prepared bodies and clients, kept from one job to the next."""

    bodies: dict[int, bytes]
    requests: dict[int, ModelRequest]
    client: aiohttp.ClientSession
    model: OpenAIModel


async def prepare(_channels: Channels, *, url: str, message: str, answer: str, turns: list[int]) -> None:
    """Prepares the conversations up to each of these turns."""
    conversations = {turn: _conversation(turn, message, answer) for turn in turns}
    _Kept.requests = {turn: ModelRequest(model="bench", messages=messages) for turn, messages in conversations.items()}
    _Kept.bodies = {
        turn: orjson.dumps(
            {
                "model": "bench",
                "stream": True,
                "stream_options": {"include_usage": True},
                "messages": [{"role": message.role.lower(), "content": message.text} for message in messages],
            }
        )
        for turn, messages in conversations.items()
    }
    _Kept.client = aiohttp.ClientSession(base_url=f"{url}/", headers={"Content-Type": "application/json"})
    _Kept.model = OpenAIModel.connect(Provider(base_url=url, api_key="none"))


async def send_bytes(_channels: Channels, *, turn: int, count: int) -> int:
    """Sends the prepared body of that turn `count` times and reads each answer. Returns the body's length in bytes."""
    for _ in range(count):
        async with _Kept.client.post("chat/completions", data=_Kept.bodies[turn]) as response:
            if not (await response.read()).endswith(b"data: [DONE]\n\n"):
                raise Invalid("the model gave no whole answer")
    return len(_Kept.bodies[turn])


async def call_model(_channels: Channels, *, turn: int, count: int, answer: str) -> None:
    """Calls the model `count` times through the service's model client. Raises Invalid for a wrong answer."""
    for _ in range(count):
        last: Any = None
        async for item in _Kept.model.stream(_Kept.requests[turn]):
            last = item
        if not isinstance(last, ModelAnswer) or last.text != answer:
            raise Invalid("the model gave another answer")


async def forget_requests(_channels: Channels, *, url: str) -> None:
    """Clears the requests that the scripted model has recorded."""
    async with aiohttp.ClientSession() as client, client.delete(_requests(url)):
        pass


async def last_request(_channels: Channels, *, url: str) -> int:
    """Returns the number of messages in the last request to the model."""
    async with aiohttp.ClientSession() as client, client.get(_requests(url)) as response:
        return len((await response.json())[-1]["body"]["messages"])


def _requests(url: str) -> str:
    return url.removesuffix("/v1") + "/requests"


def _conversation(turns: int, message: str, answer: str) -> tuple[Message, ...]:
    """Returns the conversation as it is sent for this turn, with the answers of all turns before it."""
    user, model = Message(role=Role.USER, text=message), Message(role=Role.ASSISTANT, text=answer)
    system = Message(role=Role.SYSTEM, text=INSTRUCTIONS)
    return (system, *(user, model) * (turns - 1), user)
