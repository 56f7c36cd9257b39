"""A stream ends when its caller may no longer read it: within a minute, here at once."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from grpc import aio

from tests import harness
from tests.calls import Issuer, bearer
from tests.e2e.support.environment import AGENTS
from tests.identities import NamedCredentials, row, stubs_as
from tests.status_details import refused
from tests.test_tools import ToolControl
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


ASKING = """
[[reply]]
match = "^ask"
tool_calls = [{ name = "act", arguments = { label = "one" } }]

[[reply]]
text = "Yes."
"""


async def test_a_stream_of_an_approver_ends_with_the_approval_that_another_decides(
    mongo_uri: str, database_name: str, tmp_path: Path, tool_control: ToolControl
) -> None:
    principals = tmp_path / "principals.toml"
    roles = {"anna": ["caller"], "ivan": ["approver"], "vera": ["approver"]}
    principals.write_text("".join(row(name, tenant="acme", roles=has) for name, has in roles.items()))
    settings: dict[str, Any] = {"agents": AGENTS, "principals": principals, "heartbeat": timedelta(milliseconds=100)}
    check = NamedCredentials()
    async with (
        harness.scripted(ASKING) as model,
        harness.serving(mongo_uri, database_name, model, recheck=0.05, authenticator=check, **settings) as running,
        aio.insecure_channel(running.address) as channel,
    ):
        anna, ivan, vera = (stubs_as(channel, f"acme/{name}") for name in roles)
        session = await harness.create_test_session(anna, agent="asker")
        await harness.send_message_to_session(anna, session, "ask")
        approval = await harness.wait_for_approval(vera, session)
        watch = session_pb2.WatchEventsRequest(session_id=session, follow=True)
        streams: list[Any] = [person.sessions.WatchEvents(watch) for person in (ivan, vera)]
        of_ivan, of_vera = streams
        assert (await of_ivan.read()).events
        for _ in range(2):
            assert not (await of_ivan.read()).events, "a keep-alive, after which its caller was checked again"
        await harness.decide(vera, approval, approve=False)
        with refused("SESSION_NOT_FOUND"):
            async with asyncio.timeout(10):
                while await of_ivan.read():
                    pass
        async with asyncio.timeout(10):
            while (await of_vera.read()).events:
                pass
        of_vera.cancel()
