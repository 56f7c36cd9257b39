"""Every call is checked at its headers: its credential, its principal, its roles; streams are checked again."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.identities import NAME, NamedCredentials, connect_as, row
from tests.status_details import refused
from turnkeeper.pb.v1 import session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = "".join(
    (
        row("anna", tenant="acme", roles=["caller"]),
        row("audit", tenant="acme", roles=["auditor"]),
        row("portal", tenant="acme", roles=["delegate"]),
        row("root", tenant="ops", roles=["platform"]),
    )
)


@dataclass(kw_only=True)
class Served:
    address: str
    credentials: NamedCredentials
    principals: Path

    @contextlib.asynccontextmanager
    async def as_(self, name: str, **metadata: str) -> AsyncIterator[Any]:
        async with connect_as(self.address, name, **metadata) as stubs:
            yield stubs


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    mongo_uri: str, module_database: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    principals = tmp_path_factory.mktemp("identity") / "principals.toml"
    principals.write_text(ROWS)
    credentials = NamedCredentials()
    async with (
        harness.scripted('[[reply]]\ntext = "Hello."\n') as model,
        harness.serving(
            mongo_uri,
            module_database,
            model,
            agents=AGENTS,
            authenticator=credentials,
            recheck=0.05,
            principals=principals,
            channelz=True,
            heartbeat=timedelta(milliseconds=200),
        ) as running,
    ):
        yield Served(address=running.address, credentials=credentials, principals=principals)


async def test_a_call_without_a_credential_is_refused(served: Served) -> None:
    async with harness.connect(served.address) as stubs:
        with refused("UNAUTHENTICATED") as refusal:
            await stubs.sessions.ListSessions(session_pb2.ListSessionsRequest())
    assert refusal.details.status is grpc.StatusCode.UNAUTHENTICATED
    assert refusal.details.metadata == {"reason": "MISSING"}


async def test_a_refused_credential_costs_no_body(served: Served) -> None:
    """The status comes although the request's body never does."""
    async with aio.insecure_channel(served.address) as channel:
        method: Any = channel.stream_unary("/turnkeeper.v1.SessionService/ListSessions")
        with pytest.raises(aio.AioRpcError) as error:
            async with asyncio.timeout(5):
                await method()
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_credential_without_a_row_is_refused(served: Served) -> None:
    async with served.as_("acme/bob") as stubs:
        with refused("PRINCIPAL_UNKNOWN") as refusal:
            await stubs.sessions.ListSessions(session_pb2.ListSessionsRequest())
    assert refusal.details.status is grpc.StatusCode.PERMISSION_DENIED


async def test_roles_admit_calls(served: Served) -> None:
    create = session_pb2.CreateSessionRequest(agent="plain", session_id="of-roles")
    async with served.as_("acme/audit") as stubs:
        with refused("PERMISSION_DENIED"):
            await stubs.sessions.CreateSession(create)
        await stubs.sessions.ListSessions(session_pb2.ListSessionsRequest())
    async with served.as_("acme/portal") as stubs:
        with refused("PERMISSION_DENIED"):
            await stubs.sessions.CreateSession(create)
    async with served.as_("acme/portal", turnkeeper_on_behalf_of="anna") as stubs:
        created = await stubs.sessions.CreateSession(create)
    assert created.session.owner == "anna"


async def test_health_is_open_reflection_needs_a_credential_and_channelz_the_platform(served: Served) -> None:
    async with aio.insecure_channel(served.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        with pytest.raises(aio.AioRpcError) as error:
            [response async for response in reflection.ServerReflectionInfo(iter(requests))]
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        unknown = ((NAME, "acme/bob"),)
        answers = [answer async for answer in reflection.ServerReflectionInfo(iter(requests), metadata=unknown)]
        assert len(answers) == 1
        channelz: Any = channelz_pb2_grpc.ChannelzStub(channel)  # type: ignore[arg-type]
        with refused("PERMISSION_DENIED"):
            await channelz.GetServers(channelz_pb2.GetServersRequest(), metadata=((NAME, "acme/anna"),))
        await channelz.GetServers(channelz_pb2.GetServersRequest(), metadata=((NAME, "ops/root"),))


@pytest.mark.parametrize("ending", ["EXPIRED", "REVOKED"])
async def test_a_stream_ends_with_its_credential_and_can_be_resumed(served: Served, ending: str) -> None:
    session_id = f"stream-{ending}"
    async with served.as_("acme/anna") as stubs:
        await stubs.sessions.CreateSession(session_pb2.CreateSessionRequest(agent="plain", session_id=session_id))
        if ending == "EXPIRED":
            served.credentials.expiries["acme/anna"] = time.time() + 0.5
        watch = stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session_id, follow=True))
        events = (await watch.read()).events
        assert [event.WhichOneof("payload") for event in events] == ["session_created"]
        if ending == "REVOKED":
            await asyncio.to_thread(served.principals.write_text, ROWS.replace("['caller']", "['auditor']", 1))
        with refused("UNAUTHENTICATED") as refusal:
            async with asyncio.timeout(10):
                while await watch.read():
                    pass
        assert refusal.details.metadata["reason"] == ending
        served.credentials.expiries.clear()
        await asyncio.to_thread(served.principals.write_text, ROWS)
        after = refusal.details.detail.cursor
        again = session_pb2.WatchEventsRequest(session_id=session_id, after=after)
        assert [list(response.events) async for response in stubs.sessions.WatchEvents(again)] == [[]]
