"""The small real model: its own process, a real answer."""

import asyncio
import signal
import sys

import openai
import pytest

from tests.processes import alive, until
from turnkeeper.model.local import LocalModel, LocalModelError, find_weights

# A process that starts a model, prints its pid, and never stops it.
PARENT = """
import asyncio
from turnkeeper.model.local import LocalModel

async def main():
    model = LocalModel()
    await model.start()
    print(model.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_it_streams_an_answer_and_leaves_no_process() -> None:
    model = LocalModel()
    async with model as base_url:
        pid = model.pid
        async with openai.AsyncOpenAI(
            base_url=base_url, api_key="none", default_headers={"Connection": "close"}
        ) as client:
            stream = await client.chat.completions.create(
                model=model.model_name,
                messages=[
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": "What is the capital of France?"},
                ],
                stream=True,
                temperature=0,
                max_tokens=32,
            )
            choices = [chunk.choices[0] async for chunk in stream if chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    assert "Paris" in text
    assert choices[-1].finish_reason == "stop"
    assert not alive(pid)


async def test_a_killed_parent_leaves_no_model() -> None:
    parent = await asyncio.create_subprocess_exec(*(sys.executable, "-c", PARENT), stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await until(lambda: not alive(pid))


def test_a_missing_package_names_what_to_do() -> None:
    with pytest.raises(LocalModelError, match="make setup"):
        find_weights("no-such-package")
