"""Each credential that a call can carry, on the wire: a good one names its caller, a bad one gets its exact answer."""

import contextlib
import hmac
import io
import json
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc import aio

from tests import harness
from tests.calls import Issuer, bearer
from tests.e2e.support.key_server import key_server
from tests.processes import until, until_call
from tests.status_details import StatusDetails, details_of
from turnkeeper import app, dev_credentials
from turnkeeper.dev_credentials import AUDIENCE, ISSUER, spiffe_id
from turnkeeper.identity import key_set
from turnkeeper.pb.v1 import session_pb2
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.telemetry import logs

SCRIPT = '[[reply]]\ntext = "Yes."'
DAY = timedelta(days=1)
XFCC = "x-forwarded-client-cert"
Metadata = Sequence[tuple[str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of `turnkeeper credentials dev`."""
    people = {"ada": ["caller"], "gateway": ["caller"], "eve": ["caller"]}
    dev_credentials.write(tmp_path, people, hosts=("localhost", "127.0.0.1"), lifetime=DAY)
    return tmp_path


def tls(folder: Path) -> dict[str, Any]:
    return {"tls_certificate": folder / "server.pem", "tls_key": folder / "server-key.pem"}


def tokens(folder: Path, keys: str) -> dict[str, Any]:
    chosen = {"identity": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_keys": keys}
    return {**chosen, "principals": folder / "principals.toml"}


@contextlib.asynccontextmanager
async def serving(mongo_uri: str, database: str, **settings: Any) -> AsyncIterator[app.Running]:
    async with harness.scripted(SCRIPT) as model, harness.serving(mongo_uri, database, model, **settings) as running:
        yield running


def secure(address: str, folder: Path, name: str = "") -> aio.Channel:
    """Opens a channel with TLS, with the certificate of that name if one is given."""
    pair = [(folder / f"{name}{end}.pem").read_bytes() for end in ("-key", "")] if name else [None, None]
    return aio.secure_channel(address, grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes(), *pair))


async def owner_of(channel: aio.Channel, metadata: Metadata) -> str:
    """Returns the owner of a session that the caller creates. Raises AioRpcError."""
    request = session_pb2.CreateSessionRequest(request_id=harness.new_request_id(), agent="assistant")
    created = await harness.Stubs(channel).sessions.CreateSession(request, metadata=metadata, timeout=10)
    return str(created.session.owner)


async def refusal_of(channel: aio.Channel, metadata: Metadata) -> StatusDetails:
    with pytest.raises(aio.AioRpcError) as error:
        await owner_of(channel, metadata)
    return details_of(error.value)


async def reason_of(channel: aio.Channel, metadata: Metadata) -> str:
    details = await refusal_of(channel, metadata)
    assert (details.status, details.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert list(details.metadata) == ["reason"]
    assert details.message == "The call carries no valid credential; send one with it."
    return details.metadata["reason"]


async def test_each_bad_token_gets_its_own_reason(mongo_uri: str, database_name: str, folder: Path) -> None:
    issuer, foreign = Issuer(), Issuer()
    now = int(time.time())
    public = issuer.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    part = f"{encoded({'alg': 'HS256', 'kid': issuer.key_id})}.{issuer.token().split('.')[1]}"
    forged = f"{part}.{jwt.utils.base64url_encode(hmac.digest(public, part.encode(), 'sha256')).decode()}"
    unsigned = jwt.encode(issuer.claims(), "", algorithm="none", headers={"kid": issuer.key_id})
    bad: dict[str, tuple[Metadata, str]] = {
        "none": ([], "MISSING"),
        "two": (bearer(issuer.token(), issuer.token()), "SEVERAL"),
        "16 KiB": (bearer(issuer.token(padding="x" * (12 << 10))), "MALFORMED"),
        "a password": ([("authorization", "Basic YWRhOmE=")], "MALFORMED"),
        "no token": (bearer("a.b.c"), "MALFORMED"),
        "expired": (bearer(issuer.token(exp=now - 61)), "EXPIRED"),
        "not yet valid": (bearer(issuer.token(nbf=now + 70)), "NOT_YET_VALID"),
        "wrong issuer": (bearer(issuer.token(iss="https://another.invalid")), "WRONG_ISSUER"),
        "wrong audience": (bearer(issuer.token(aud="another")), "WRONG_AUDIENCE"),
        "no end": (bearer(issuer.token(exp=None)), "MALFORMED"),
        "another key": (bearer(foreign.token()), "BAD_SIGNATURE"),
        "unknown key": (bearer(Issuer("unknown").token()), "UNKNOWN_KEY"),
        "unsigned": (bearer(unsigned), "WRONG_ALGORITHM"),
        "public key as a password": (bearer(forged), "WRONG_ALGORITHM"),
        "another algorithm": (
            bearer(issuer.token(algorithm="RS512", key=rsa.generate_private_key(65537, 2048))),
            "WRONG_ALGORITHM",
        ),
    }
    assert len(bad["16 KiB"][0][0][1]) > 16 << 10
    async with (
        key_server(issuer) as keys,
        serving(mongo_uri, database_name, **tokens(folder, keys.url)) as running,
        aio.insecure_channel(running.address) as channel,
    ):
        assert await owner_of(channel, bearer(issuer.token())) == "ada"
        for what, (metadata, reason) in bad.items():
            assert await reason_of(channel, metadata) == reason, what
        assert await owner_of(channel, bearer(issuer.token())) == "ada"
        stranger = await refusal_of(channel, bearer(issuer.token(sub="mallory")))
        assert (stranger.status, stranger.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PRINCIPAL_UNKNOWN")
        assert keys.requests == 1, "an unknown key within 10 s of a fetch causes no other one"


def encoded(header: dict[str, str]) -> str:
    return jwt.utils.base64url_encode(json.dumps(header).encode()).decode()


async def test_a_key_server_that_is_down_at_the_start(
    mongo_uri: str, database_name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = Issuer()
    async with (
        key_server(issuer, is_up=False) as keys,
        serving(mongo_uri, database_name, **tokens(folder, keys.url)) as running,
        aio.insecure_channel(running.address, [("grpc.enable_retries", 0)]) as channel,
    ):
        for _ in range(3):
            details = await refusal_of(channel, bearer(issuer.token()))
            assert (details.status, details.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVICE_UNAVAILABLE")
            assert details.metadata == {"reason": "KEYS_UNAVAILABLE"}
            assert details.retry_after == timedelta(seconds=1)
        assert await reason_of(channel, []) == "MISSING"
        await keys.up()

        async def is_accepted() -> bool:
            with contextlib.suppress(aio.AioRpcError):
                return await owner_of(channel, bearer(issuer.token())) == "ada"
            return False

        await until_call(is_accepted)
    assert "tokens are refused until they are fetched" in caplog.text


async def test_a_key_server_that_is_down_later_fails_no_call_of_a_known_key(
    mongo_uri: str, database_name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For ten cache times. Each call has a new token, so that its signature is checked."""
    issuer = Issuer()
    age = timedelta(milliseconds=100)
    async with (
        key_server(issuer) as keys,
        serving(mongo_uri, database_name, **tokens(folder, keys.url), jwt_keys_age=age) as running,
        aio.insecure_channel(running.address) as channel,
    ):
        await until(lambda: keys.requests >= 2)
        await keys.down()
        end = time.monotonic() + 10 * age.total_seconds()
        calls = 0
        while time.monotonic() < end or calls < 10:
            assert await owner_of(channel, bearer(issuer.token(number=calls))) == "ada"
            calls += 1
        details = await refusal_of(channel, bearer(Issuer("new").token()))
        assert (details.status, details.metadata["reason"]) == (grpc.StatusCode.UNAVAILABLE, "KEYS_UNAVAILABLE")
    assert "the keys fetched before stay in use" in caplog.text


async def test_a_rotated_key(mongo_uri: str, database_name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call with the new key fetches it, and the old one ends with its key."""
    monkeypatch.setattr(key_set, "REFETCH", 0.2)
    old, new = Issuer("old"), Issuer("new")
    async with (
        key_server(old) as keys,
        serving(mongo_uri, database_name, **tokens(folder, keys.url)) as running,
        aio.insecure_channel(running.address) as channel,
    ):
        token = bearer(old.token())
        assert await owner_of(channel, token) == "ada"
        fetched = time.monotonic()
        keys.issuers = [new]
        await until(lambda: time.monotonic() - fetched > 0.2)
        assert await owner_of(channel, bearer(new.token())) == "ada"
        assert await reason_of(channel, token) == "UNKNOWN_KEY"


async def test_keys_in_a_file_are_read_again(mongo_uri: str, database_name: str, folder: Path) -> None:
    issuer, token = Issuer(), (folder / "ada.token").read_text()
    async with (
        serving(mongo_uri, database_name, **tokens(folder, str(folder / "keys.json"))) as running,
        aio.insecure_channel(running.address) as channel,
    ):
        assert await owner_of(channel, bearer(token)) == "ada"
        (folder / "keys.json").write_text(json.dumps({"keys": [issuer.jwk()]}))

        async def is_refused() -> bool:
            with contextlib.suppress(aio.AioRpcError):
                return await owner_of(channel, bearer(token)) != "ada"
            return True

        await until_call(is_refused, timeout=3)
        assert await owner_of(channel, bearer(issuer.token())) == "ada"
        assert await reason_of(channel, bearer(token)) == "BAD_SIGNATURE"


async def test_tokens_over_tls_on_every_address(mongo_uri: str, database_name: str, folder: Path) -> None:
    settings = {**tokens(folder, str(folder / "keys.json")), **tls(folder), "host": "0.0.0.0"}
    async with (
        serving(mongo_uri, database_name, **settings) as running,
        secure(f"localhost:{running.port}", folder) as channel,
    ):
        assert await owner_of(channel, bearer((folder / "ada.token").read_text())) == "ada"
        assert await reason_of(channel, []) == "MISSING"


async def test_a_certificate_names_its_caller(mongo_uri: str, database_name: str, folder: Path) -> None:
    settings = {
        "identity": "mtls",
        "principals": folder / "principals.toml",
        "tls_client_ca": folder / "ca.pem",
        **tls(folder),
    }
    async with serving(mongo_uri, database_name, **settings) as running:
        for name in ("ada", "eve"):
            async with secure(running.address, folder, name) as channel:
                assert await owner_of(channel, bearer("a token counts nothing here")) == name
        async with secure(running.address, folder, "server") as channel:
            stranger = await refusal_of(channel, [])
            assert (stranger.status, stranger.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PRINCIPAL_UNKNOWN")


async def test_a_listed_peer_carries_the_tokens_of_others(mongo_uri: str, database_name: str, folder: Path) -> None:
    settings = {
        **tokens(folder, str(folder / "keys.json")),
        **tls(folder),
        "identity": "mtls+jwt",
        "tls_client_ca": folder / "ca.pem",
        "trusted_peers": spiffe_id("gateway"),
    }
    token = bearer((folder / "ada.token").read_text())
    async with serving(mongo_uri, database_name, **settings) as running:
        async with secure(running.address, folder, "gateway") as channel:
            assert await owner_of(channel, token) == "ada"
            assert await reason_of(channel, []) == "MISSING"
            assert await reason_of(channel, bearer("a.b.c")) == "MALFORMED"
        async with secure(running.address, folder, "eve") as channel:
            assert await reason_of(channel, token) == "UNLISTED_PEER"
        async with secure(running.address, folder) as channel:
            with pytest.raises(aio.AioRpcError) as error:
                await owner_of(channel, token)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_proxy_on_a_unix_socket_forwards_what_a_certificate_names(
    mongo_uri: str, database_name: str, folder: Path
) -> None:
    settings = {"identity": "forwarded", "principals": folder / "principals.toml", "trusted_peers": "unix"}
    ada, eve = spiffe_id("ada"), spiffe_id("eve")
    async with (
        serving(mongo_uri, database_name, **settings, host=f"unix:{folder}/s") as running,
        aio.insecure_channel(running.address) as channel,
    ):
        assert await owner_of(channel, [(XFCC, f'By=x;Hash=0a;Subject="CN=eve,O=a";URI={ada}')]) == "ada"
        assert await owner_of(channel, [(XFCC, f"URI={eve},URI={ada}")]) == "ada"
        assert await reason_of(channel, [(XFCC, f'URI="{eve},URI={ada}')]) == "MALFORMED"
        assert await reason_of(channel, [(XFCC, f"URI={ada}"), (XFCC, f"URI={eve}")]) == "SEVERAL"
        assert await reason_of(channel, []) == "MISSING"


async def test_what_another_peer_forwards_is_forged(mongo_uri: str, database_name: str, folder: Path) -> None:
    chosen = {"identity": "forwarded", "principals": folder / "principals.toml"}
    forwards = [(XFCC, f"URI={spiffe_id('ada')}")]
    async with (
        serving(mongo_uri, database_name, **chosen, trusted_peers="10.0.0.0/8, unix") as running,
        aio.insecure_channel(running.address) as channel,
    ):
        assert await reason_of(channel, forwards) == "UNLISTED_PEER"
    settings = {**chosen, **tls(folder), "tls_client_ca": folder / "ca.pem", "trusted_peers": spiffe_id("gateway")}
    async with serving(mongo_uri, database_name, **settings) as running:
        async with secure(running.address, folder, "gateway") as channel:
            assert await owner_of(channel, forwards) == "ada"
        async with secure(running.address, folder, "eve") as channel:
            assert await reason_of(channel, forwards) == "UNLISTED_PEER"


async def test_the_log_has_a_warning_of_a_trusted_network_and_never_a_token(
    mongo_uri: str, database_name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="turnkeeper")
    token = (folder / "ada.token").read_text()
    settings = {**tokens(folder, str(folder / "keys.json")), "host": "0.0.0.0", "trust_network": True}
    async with (
        serving(mongo_uri, database_name, **settings) as running,
        aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        await owner_of(channel, bearer(token))
        await reason_of(channel, bearer(f"{token}x"))
    assert "--trust-network is set: without TLS, credentials and conversations can be read" in caplog.text
    assert not [part for part in token.split(".") if part in caplog.text]
    caplog.clear()
    async with serving(mongo_uri, database_name, identity="none", host="0.0.0.0", trust_network=True):
        pass
    assert "--trust-network is set: every caller that can connect may do everything" in caplog.text


async def test_the_log_of_a_call_names_its_caller_and_no_other(
    mongo_uri: str, database_name: str, folder: Path
) -> None:
    """Of a call that fails inside. The lines of its own task have the caller; a task that it starts has none."""
    lines = io.StringIO()
    token = bearer((folder / "ada.token").read_text())
    settings = {**tokens(folder, str(folder / "keys.json")), "new_store": Failing}
    log = logs.start(stream=lines, as_json=True)
    try:
        async with (
            serving(mongo_uri, database_name, **settings) as running,
            aio.insecure_channel(running.address) as channel,
        ):
            with pytest.raises(aio.AioRpcError) as error:
                await harness.Stubs(channel).sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=token)
            assert error.value.code() is grpc.StatusCode.INTERNAL
    finally:
        log.stop()
    written = [json.loads(line) for line in lines.getvalue().splitlines()]
    named = [line for line in written if "principal" in line]
    assert [(line["tenant"], line["principal"]) for line in named] == [("default", "ada")]
    assert "failed: a defect" in named[0]["message"]


class Failing(MongoStore):
    """A store with a defect."""

    async def sessions(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("a defect of the test")
