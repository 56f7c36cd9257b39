"""A stream ends when its credential is withdrawn: within a minute, here at once, and with a cursor."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from grpc import aio

from tests import harness
from tests.calls import Issuer, bearer
from tests.status_details import refused
from turnkeeper import dev_credentials
from turnkeeper.dev_credentials import AUDIENCE, ISSUER
from turnkeeper.pb.v1 import session_pb2

SCRIPT = '[[reply]]\ntext = "Yes."'


async def test_a_stream_ends_when_the_key_of_its_token_is_withdrawn(
    mongo_uri: str, database_name: str, tmp_path: Path
) -> None:
    dev_credentials.write(tmp_path, {"ada": ["caller"]}, hosts=("localhost",), lifetime=timedelta(days=1))
    old, new = Issuer("old"), Issuer("new")
    keys = tmp_path / "keys.json"

    def serve(*issuers: Issuer) -> None:
        keys.write_text(json.dumps({"keys": [issuer.jwk() for issuer in issuers]}))

    serve(old, new)
    settings: dict[str, Any] = {
        "identity": "jwt",
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "jwt_keys": str(keys),
        "principals": tmp_path / "principals.toml",
        "heartbeat": timedelta(milliseconds=100),
    }
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model, recheck=0.05, **settings) as running,
        aio.insecure_channel(running.address) as channel,
    ):
        sessions: Any = harness.Stubs(channel).sessions
        request = session_pb2.CreateSessionRequest(session_id="s", request_id="r", agent="assistant")
        await sessions.CreateSession(request, metadata=bearer(old.token()))
        watch = session_pb2.WatchEventsRequest(session_id="s", follow=True)
        ended, kept = (sessions.WatchEvents(watch, metadata=bearer(issuer.token())) for issuer in (old, new))
        assert (await ended.read()).events
        await asyncio.to_thread(serve, new)
        with refused("UNAUTHENTICATED") as refusal:
            async with asyncio.timeout(10):
                while await ended.read():
                    pass
        assert refusal.details.metadata["reason"] == "UNKNOWN_KEY"
        assert refusal.details.detail.cursor
        assert (await kept.read()).events
        assert not (await kept.read()).events, "a keep-alive, after which its caller was checked again"
        kept.cancel()
