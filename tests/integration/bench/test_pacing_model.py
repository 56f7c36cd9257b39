"""The pacing model speaks as a model server does, and keeps account of its own time."""

import asyncio

from openai import AsyncOpenAI

from tests.bench import pacing
from tests.bench.jobs.model import model_lateness
from tests.bench.pacing import Pace
from tests.bench.pacing_model import Connection
from tests.bench.runner import Channels


async def test_its_answers_are_whole_one_after_the_other_on_a_connection() -> None:
    Connection.late = []
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    pace = Pace(5, apart_ms=1, first_ms=1)
    async with server, AsyncOpenAI(base_url=url, api_key="none") as client:
        for _ in range(2):
            stream = await client.chat.completions.create(
                model="bench",
                messages=[{"role": "user", "content": pace.message}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert pacing.is_whole(text, pace)
            assert chunks[-2].choices[0].finish_reason == "stop"
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.completion_tokens == pace.chunks
        own = await model_lateness(Channels(None), url=url)  # type: ignore[arg-type]  # no channel is opened
        assert own["chunks"] == 2 * pace.chunks
        assert (await model_lateness(Channels(None), url=url))["chunks"] == 0  # type: ignore[arg-type]
