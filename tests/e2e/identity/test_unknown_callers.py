"""What callers without a valid credential can use up: nothing that known callers need."""

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import aio

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.identities import NamedCredentials, row, stubs_as
from tests.status_details import details_of
from turnkeeper.admission.rate import Rate
from turnkeeper.pb.v1 import chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

TURNS = 2
"""Turns that the server of these tests accepts in all, as if in an overload."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    principals = tmp_path_factory.mktemp("identity") / "principals.toml"
    principals.write_text(row("anna", tenant="acme") + row("audit", tenant="acme", roles=["auditor"]))
    with pytest.MonkeyPatch.context() as patch:
        made = Rate.__init__

        def limited(rate: Rate, **options: Any) -> None:
            made(rate, **options)
            rate.per_second, rate._free = 1e-9, float(TURNS)  # noqa: SLF001 - no other way to an overload that stays

        patch.setattr(Rate, "__init__", limited)
        patch.setattr(Rate, "end_window", lambda *_, **__: None)
        async with (
            harness.scripted('[[reply]]\ntext = "Yes."') as model,
            harness.serving(
                mongo_uri,
                f"turnkeeper_test_{time.time_ns():x}",
                model,
                agents=AGENTS,
                authenticator=NamedCredentials(),
                principals=principals,
            ) as running,
        ):
            yield running.address


async def test_refused_callers_use_up_no_turns(address: str) -> None:
    async with aio.insecure_channel(address) as channel:
        anna = stubs_as(channel, "acme/anna")
        session = await harness.create_test_session(anna, agent="talker")
        request = chat_pb2.SendMessageRequest(session_id=session, request_id="r", content=harness.text_parts("hello"))
        strangers = {
            "": grpc.StatusCode.UNAUTHENTICATED,
            "acme/mallory": grpc.StatusCode.PERMISSION_DENIED,
            "acme/audit": grpc.StatusCode.PERMISSION_DENIED,
        }
        for name, status in strangers.items():
            chat = stubs_as(channel, name).chat if name else harness.Stubs(channel).chat
            for _ in range(TURNS + 1):
                with pytest.raises(aio.AioRpcError) as refusal:
                    await chat.SendMessage(request)
                assert refusal.value.code() is status, name
        for number in range(TURNS):
            await harness.send_message_to_session(anna, session, "hello", request_id=f"of-anna-{number}")
        with pytest.raises(aio.AioRpcError) as refusal:
            await harness.send_message_to_session(anna, session, "hello")
        assert details_of(refusal.value).metadata["limit"] == "turn_rate"
