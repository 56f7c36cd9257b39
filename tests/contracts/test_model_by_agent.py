"""Each agent gets its model: at its own address, with its own key, headers and fields."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.contracts.gateway import answering, gateway
from tests.contracts.models import answer, asking
from turnkeeper.codes import Code
from turnkeeper.domain.agent import Agent
from turnkeeper.model import by_agent
from turnkeeper.model.by_agent import Models
from turnkeeper.model.contract import ModelFailure
from turnkeeper.model.openai_client import Provider
from turnkeeper.settings import Settings
from turnkeeper.start_errors import SettingError

DEFAULT = Provider(base_url="http://127.0.0.1:9/v1", api_key="default-key")
ENVIRON = {"OPENAI_API_KEY": "default-key", "AZURE_KEY": "azure-key-1", "TEAM": "night"}


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    models = Models(DEFAULT, Settings(), ENVIRON)
    yield models
    await models.close()


def _agent(**keys: object) -> Agent:
    return Agent(name="clerk", model="m", **keys)  # type: ignore[arg-type]


async def test_an_agents_keys_reach_its_server(models: Models) -> None:
    async with gateway(lambda _: answering()) as server:
        agent = _agent(
            base_url=f"{server.base_url}?api-version=1",
            api_key_env="AZURE_KEY",
            extra_headers=(("api-key", "${AZURE_KEY}"), ("x-team", "${TEAM}-${TEAM}")),
            extra_body_json='{"top_p": 0.1}',
            omit=("stream_options",),
        )
        await answer(models.of(agent), asking("hello"))
    (call,) = server.calls
    assert call.target.endswith("?api-version=1")
    assert call.headers["authorization"] == "Bearer azure-key-1"
    assert (call.headers["api-key"], call.headers["x-team"]) == ("azure-key-1", "night-night")
    assert call.body["top_p"] == 0.1
    assert "stream_options" not in call.body


async def test_keys_count_for_the_default_server_too(models: Models) -> None:
    assert models.of(_agent(omit=("tools",))) is not models.of(_agent())
    assert models.of(_agent()) is models.of(_agent(temperature=1))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"base_url": "http://[::1"}, "the model's address is no URL"),
        ({"base_url": "ftp://x"}, "the model's address must begin with"),
        ({"extra_headers": (("x", "${NOT_SET}"),)}, "the header x needs the environment variable NOT_SET"),
        ({"extra_headers": (("x", "ü"),)}, "the header x holds characters"),
    ],
)
async def test_what_cannot_be_used_ends_the_start_or_the_turn(
    models: Models, keys: dict[str, object], reason: str
) -> None:
    with pytest.raises(SettingError, match="agent clerk: ") as raised:
        models.check([_agent(**keys)])
    assert reason in str(raised.value)
    with pytest.raises(ModelFailure) as failed:
        models.of(_agent(**keys))
    assert failed.value.detail.code is Code.AGENT_CONFIG_ERROR


async def test_c1_a_client_that_does_not_close_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = asyncio.Event()

    async def close() -> None:
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()

    models = Models(DEFAULT, Settings(), ENVIRON)
    monkeypatch.setattr(by_agent, "CLOSE_TIME", 0.02)
    monkeypatch.setattr(models.of(_agent()), "close", close)
    async with asyncio.timeout(5):
        await models.close()
    assert "the connections of 1 models were not closed" in caplog.text
    released.set()
