"""The small local model's process dies: it is started again at its address."""

import logging
import os
import signal

import openai
import pytest

from tests.processes import alive, until
from turnkeeper.model.local import LocalModel


async def test_a_killed_model_answers_again_at_its_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "turnkeeper.model.local")
    model = LocalModel()
    async with model as url:
        killed = model.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        await until(lambda: "the local model answers again" in caplog.messages, timeout=40)
        assert model.base_url == url
        assert model.pid not in (killed, None)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", default_headers={"Connection": "close"}) as client:
            answer = await client.completions.create(model=model.model_name, prompt="Paris is", max_tokens=4)
        assert answer.choices
        again = model.pid
    assert not alive(again)
    assert "was ended by SIGKILL" in caplog.messages[0]
