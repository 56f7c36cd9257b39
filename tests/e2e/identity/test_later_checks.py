"""A stream or a wait ends when its caller may no longer read: within a minute, here at once."""

import asyncio
import json
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from tests import harness
from tests.calls import Issuer, bearer
from tests.contracts.stores import until
from tests.e2e.support.environment import AGENTS
from tests.identities import NamedCredentials, row, stubs_as
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper import dev_credentials
from turnkeeper.dev_credentials import AUDIENCE, ISSUER
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import Turn
from turnkeeper.pb.v1 import chat_pb2, session_pb2
from turnkeeper.store.mongo.store import MongoStore

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


class Watched(MongoStore):
    """Counts how often each turn was read."""

    reads: ClassVar[Counter[str]] = Counter()

    async def turn(self, key: SessionKey, turn_id: str) -> Turn | None:
        self.reads[turn_id] += 1
        return await super().turn(key, turn_id)


async def test_a_wait_has_no_result_for_those_who_may_no_longer_read(
    mongo_uri: str, database_name: str, tmp_path: Path, tool_control: ToolControl
) -> None:
    """While they wait, Anna's row is removed, and Vera decides the approval by which Ivan reads the session."""
    principals = tmp_path / "principals.toml"
    roles = {"ivan": ["approver"], "vera": ["approver"], "anna": ["caller"]}
    rows = [row(name, tenant="acme", roles=has) for name, has in roles.items()]
    principals.write_text("".join(rows))
    settings: dict[str, Any] = {"agents": AGENTS, "principals": principals, "authenticator": NamedCredentials()}
    async with (
        harness.scripted(ASKING) as model,
        harness.serving(mongo_uri, database_name, model, recheck=0.0, new_store=Watched, **settings) as running,
        aio.insecure_channel(running.address) as channel,
    ):
        people = [stubs_as(channel, f"acme/{name}") for name in roles]
        _, vera, anna = people
        session = await harness.create_test_session(anna, agent="asker")
        await harness.send_message_to_session(anna, session, "ask")
        approval = await harness.wait_for_approval(vera, session)
        queued = await harness.send_message_to_session(anna, session, "x", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE)
        request = chat_pb2.GetTurnRequest(session_id=session, turn_id=queued.turn_id, wait=Duration(seconds=30))
        reads = Watched.reads[queued.turn_id]
        waits: list[Any] = [stubs.chat.GetTurn(request) for stubs in people]

        async def all_wait() -> bool:
            return Watched.reads[queued.turn_id] == reads + len(waits)

        async def anna_is_gone() -> bool:
            code: grpc.StatusCode = await anna.sessions.ListSessions(session_pb2.ListSessionsRequest()).code()
            return code is grpc.StatusCode.PERMISSION_DENIED

        await until(all_wait)
        await asyncio.to_thread(principals.write_text, "".join(rows[:2]))
        await until(anna_is_gone)
        await harness.decide(vera, approval, approve=False)
        of_ivan, of_vera, of_anna = waits
        assert (await of_vera).turn.state == chat_pb2.TURN_STATE_COMPLETED
        with refused("SESSION_NOT_FOUND"):
            await of_ivan
        with refused("UNAUTHENTICATED") as refusal:
            await of_anna
        assert refusal.details.metadata["reason"] == "REVOKED"
