"""The Python client against a server that checks certificates and tokens."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import pytest

from tests import harness
from tests.calls import Issuer
from tests.e2e.support.key_server import key_server
from tests.processes import until
from turnkeeper import dev_credentials
from turnkeeper.dev_credentials import AUDIENCE, ISSUER, spiffe_id
from turnkeeper.identity.tokens import SKEW
from turnkeeper_client import Client, Credentials
from turnkeeper_client.errors import PermissionDenied

SCRIPT = '[[reply]]\ntext = "Yes."'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    people = {"ada": ["caller"], "portal": ["delegate"]}
    dev_credentials.write(tmp_path, people, hosts=["127.0.0.1"], lifetime=timedelta(days=1))
    return tmp_path


async def test_a_stream_goes_on_after_its_token_has_expired(mongo_uri: str, database_name: str, folder: Path) -> None:
    """Over TLS. The first token ends while the stream is open; the events after that come with the second."""
    issuer = Issuer()
    sources: list[float] = []

    def token() -> str:
        sources.append(time.time())
        return issuer.token(exp=int(time.time()) - SKEW + 2 if len(sources) == 1 else int(time.time()) + 600)

    async with (
        key_server(issuer) as keys,
        harness.scripted(SCRIPT) as model,
        harness.serving(
            mongo_uri,
            database_name,
            model,
            recheck=0.05,
            heartbeat=timedelta(milliseconds=100),
            identity="jwt",
            jwt_issuer=ISSUER,
            jwt_audience=AUDIENCE,
            jwt_keys=keys.url,
            principals=folder / "principals.toml",
            tls_certificate=folder / "server.pem",
            tls_key=folder / "server-key.pem",
        ) as running,
        Client(running.address, credentials=Credentials(ca=folder / "ca.pem", token=token)) as client,
    ):
        session = await client.sessions.create("assistant")
        kinds: list[str | None] = []

        async def follow() -> None:
            kinds.extend([event.WhichOneof("payload") async for event in session.follow(previews=False)])

        following = asyncio.create_task(follow())
        await until(lambda: len(sources) >= 2)
        async with asyncio.timeout(15):
            await session.send("Well?")
            await session.end()
            await following
    assert kinds.count("session_created") == kinds.count("turn_completed") == kinds.count("session_ended") == 1
    assert len(sources) == 2


async def test_a_delegate_with_a_certificate_calls_for_a_person(
    mongo_uri: str, database_name: str, folder: Path
) -> None:
    pair = Credentials(ca=folder / "ca.pem", certificate=folder / "portal.pem", key=folder / "portal-key.pem")
    for_ada = Credentials(ca=pair.ca, certificate=pair.certificate, key=pair.key, on_behalf_of="ada")
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(
            mongo_uri,
            database_name,
            model,
            identity="mtls",
            principals=folder / "principals.toml",
            tls_certificate=folder / "server.pem",
            tls_key=folder / "server-key.pem",
            tls_client_ca=folder / "ca.pem",
        ) as running,
    ):
        async with Client(running.address, credentials=for_ada) as client:
            session = await client.sessions.create("assistant")
            assert (await session.get()).owner == "ada"
        async with Client(running.address, credentials=pair) as client:
            with pytest.raises(PermissionDenied):
                await client.sessions.create("assistant")
    assert spiffe_id("portal") in (folder / "principals.toml").read_text()
