"""The pacing model answers as a model server does, and keeps account of its own time."""

import sys
from pathlib import Path

from openai import AsyncOpenAI

from tests.bench import pacing
from tests.bench.jobs.model import model_lateness
from tests.bench.pacing import Pace
from tests.bench.pacing_model import READY
from tests.bench.runner import Channels
from tests.chaos.programs import Program
from tests.chaos.servers import environment

PACE = Pace(5, apart_ms=1, first_ms=1)


async def test_its_answers_are_whole_one_after_the_other_on_a_connection(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.pacing_model"]
    program = Program("pacing", command, log=tmp_path / "log", environ=environment())
    program.start()
    try:
        url = (await program.until_line(READY)).rsplit(" ", 1)[1]
        async with AsyncOpenAI(base_url=url, api_key="none") as client:
            for _ in range(2):
                await _one_answer(client)
        channels = Channels(None)  # type: ignore[arg-type]  # no channel is opened
        assert (await model_lateness(channels, url=url))["chunks"] == 2 * PACE.chunks
        assert (await model_lateness(channels, url=url))["chunks"] == 0
    finally:
        await program.kill_if_running()


async def _one_answer(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="bench",
        messages=[{"role": "user", "content": PACE.message}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert pacing.is_whole(text, PACE)
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == PACE.chunks
