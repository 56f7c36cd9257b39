"""What callers without a valid credential can use up: nothing that known callers need."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.identities import NAME, NamedCredentials, row, stubs_as
from tests.processes import until_call
from tests.status_details import details_of
from turnkeeper.admission.gate import CALL_BYTES
from turnkeeper.admission.rate import Rate
from turnkeeper.pb.v1 import chat_pb2
from turnkeeper.rpc import free_streams

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN = [("grpc.use_local_subchannel_pool", 1)]
"""A channel has a connection of its own."""
TURNS = 2
"""Turns that the server of these tests accepts in all, as if in an overload."""

STREAMS = 4
"""Streams of health and reflection that it has at most."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    principals = tmp_path_factory.mktemp("identity") / "principals.toml"
    principals.write_text(row("anna", tenant="acme") + row("audit", tenant="acme", roles=["auditor"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(free_streams, "MOST_BYTES", STREAMS * CALL_BYTES)
        begin = Rate.__init__

        def limited(rate: Rate, **options: Any) -> None:
            begin(rate, **options)
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


async def test_streams_of_health_are_not_too_many(address: str) -> None:
    """Each costs memory, and needs no credential. One connection has half of them, and checks are always answered."""
    async with aio.insecure_channel(address, OWN) as first, aio.insecure_channel(address, OWN) as second:
        of_first = [await opened(first) for _ in range(STREAMS // 2)]
        for channel, free in ((first, 0), (second, STREAMS // 2), (first, 0)):
            for _ in range(free):
                await opened(channel)
            with pytest.raises(aio.AioRpcError) as refusal:
                await opened(channel)
            assert details_of(refusal.value).reason == "OVERLOADED"
            assert details_of(refusal.value).metadata["limit"] == "memory"
            checked = await health_of(channel).Check(health_pb2.HealthCheckRequest())
            assert checked.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(second)  # type: ignore[arg-type]
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        with pytest.raises(aio.AioRpcError) as refusal:
            await reflection.ServerReflectionInfo(iter(requests), metadata=((NAME, "acme/anna"),)).read()
        assert details_of(refusal.value).reason == "OVERLOADED"
        of_first[0].cancel()

        async def is_free() -> bool:
            with contextlib.suppress(aio.AioRpcError):
                await opened(first)
                return True
            return False

        await until_call(is_free)


def health_of(channel: aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


async def opened(channel: aio.Channel) -> Any:
    """Opens a stream of health, and returns it once it has its first response."""
    watch = health_of(channel).Watch(health_pb2.HealthCheckRequest())
    await watch.read()
    return watch
