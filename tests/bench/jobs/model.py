"""F1: the scripted model called directly, by the load generator itself."""

import asyncio
import random
import time
from typing import Any

import aiohttp
import orjson

from tests.bench.figures import Invalid
from tests.bench.runner import Channels


async def call_model(
    _channels: Channels, *, url: str, message: str, answer: str, count: int, concurrency: int, apart: float = 0.0
) -> dict[str, Any]:
    """Calls the model `count` times, `concurrency` at once. Returns `seconds` and the `first_text_ms` of each call."""
    chance, left, first = random.Random(concurrency), iter(range(count)), list[float]()
    body = {
        "model": "bench",
        "stream": True,
        "messages": [{"role": "system", "content": "You are brief."}, {"role": "user", "content": message}],
    }
    connections = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connections) as client:

        async def work(start: float) -> None:
            await asyncio.sleep(start)
            for _ in left:
                first.append(1000 * await _call(client, f"{url}/chat/completions", body, answer))

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work(chance.uniform(0, apart)))
        return {"seconds": time.perf_counter() - began, "first_text_ms": first}


async def _call(client: aiohttp.ClientSession, url: str, body: dict[str, Any], answer: str) -> float:
    """Returns the seconds to the first text. Raises Invalid for a wrong answer."""
    began, lines = time.perf_counter(), list[tuple[float, bytes]]()
    async with client.post(url, json=body) as response:
        async for line in response.content:
            lines.append((time.perf_counter() - began, line))
    events = [(at, line[6:]) for at, line in lines if line.startswith(b"data: {")]
    choices = [(at, choice) for at, event in events for choice in orjson.loads(event)["choices"]]
    texts = [(at, text) for at, choice in choices if (text := choice["delta"].get("content"))]
    if "".join(text for _, text in texts) != answer:
        raise Invalid("the model itself gave another answer")
    return texts[0][0]


async def model_lateness(_channels: Channels, *, url: str) -> dict[str, Any]:
    """Returns how many chunks the pacing model has sent since the last call, and how late: p50 and p99 in ms."""
    async with aiohttp.ClientSession() as client, client.get(f"{url.removesuffix('/v1')}/lateness") as response:
        lateness: dict[str, Any] = await response.json()
        return lateness
