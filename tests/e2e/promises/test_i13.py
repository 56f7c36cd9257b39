"""I13: principals of two tenants have the same name and use the same ids, at the same time, on the same two replicas.

What each gets is its own: by lists, streams, previews, repeats, and what the model is sent.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS
from tests.e2e.support.stream_reader import Reader, watch
from tests.harness import Stubs
from tests.identities import connect_as, row, settings_of
from tests.processes import until
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

TENANTS = ("amber", "birch")
SETTINGS: Mapping[str, Any] = {"poll": timedelta(seconds=60), "lease": timedelta(seconds=1.5)}
"""Nothing here is found by a poll: another replica's events and text come by the change stream, or not in time.

A replica that has been alone learns of the other by its next heartbeat, after 0.4 s, and publishes text from then on.
"""
REPEATED = 40
SCRIPT = rf"""
[[reply]]
match = '^tell (?P<name>\w+)'
text = "{"{name} " * REPEATED}"
chunk = 5
delay = "30ms"

[[reply]]
match = '^ask (?P<label>\S+)'
after_tools = 0
tool_calls = [{{ name = "act", arguments = {{ label = "{{label}}" }} }}]

[[reply]]
text = "You said: {{user}}"
"""


@dataclass(frozen=True, slots=True)
class Place:
    """By tenant: the stubs of its principal on each of the two replicas."""

    here: Mapping[str, Stubs]
    there: Mapping[str, Stubs]
    model: Any

    async def sessions(self) -> str:
        """Creates a session of the same id in each tenant. Returns the id."""
        session = f"same-{secrets.token_hex(4)}"
        for stubs in self.here.values():
            await harness.create_test_session(stubs, agent="asker", session_id=session)
        return session


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(
    mongo_uri: str, module_database: str, tmp_path_factory: pytest.TempPathFactory, tool_control: ToolControl
) -> AsyncIterator[Place]:
    rows = [row("ada", tenant=tenant, roles=["caller", "approver"]) for tenant in TENANTS]
    settings = {**settings_of(tmp_path_factory.mktemp("identity"), *rows), **SETTINGS}
    async with contextlib.AsyncExitStack() as stack:
        model = await stack.enter_async_context(harness.scripted(SCRIPT))
        replicas: list[dict[str, Stubs]] = []
        for _ in range(2):
            serving = harness.serving(mongo_uri, module_database, model, agents=AGENTS, **settings)
            address = (await stack.enter_async_context(serving)).address
            connected = {name: connect_as(address, f"{name}/ada") for name in TENANTS}
            replicas.append({name: await stack.enter_async_context(stubs) for name, stubs in connected.items()})
        yield Place(replicas[0], replicas[1], model)
        await check(mongo_uri, module_database)


async def test_i13_watchers_on_two_replicas_get_events_and_text_of_their_own_tenant(place: Place) -> None:
    session = await place.sessions()
    readers = {(side, name): Reader() for side in ("here", "there") for name in TENANTS}
    async with asyncio.TaskGroup() as group, asyncio.timeout(30):
        following = [
            group.create_task(_follow(getattr(place, side)[name], session, reader))
            for (side, name), reader in readers.items()
        ]
        await until(lambda: all(reader.caught_up for reader in readers.values()))
        for name in TENANTS:
            await harness.send_message_to_session(place.here[name], session, f"tell {name}", wait=0)
        await until(lambda: all("turn_completed" in reader.kinds for reader in readers.values()), timeout=15)
        for task in following:
            task.cancel()
    for (side, name), reader in readers.items():
        assert reader.events == await harness.all_events(place.here[name], session), f"{name}, {side}"
        (text,) = reader.texts.values()
        assert text.decode() == f"{name} " * REPEATED
        assert len(reader.deltas) > 1, f"{name}, {side}: the text did not come at once"


async def test_i13_turns_that_alternate_have_the_conversation_of_their_own_tenant(place: Place) -> None:
    """What a replica keeps of one tenant's session is not that of the other's next turn."""
    session = await place.sessions()
    for number in range(3):
        for name in TENANTS:
            turn = await harness.send_message_to_session(place.here[name], session, f"{name} {session} {number}")
            assert harness.answer_of(turn) == f"You said: {name} {session} {number}"
    for name in TENANTS:
        sent = place.model.exchanges.all()
        last = [exchange.body.decode() for exchange in sent if f"{name} {session} 2" in exchange.body.decode()]
        assert len(last) == 1
        assert not [other for other in TENANTS if other != name and f"{other} {session}" in last[0]]
        request = session_pb2.ListMessagesRequest(session_id=session)
        messages = (await place.here[name].sessions.ListMessages(request)).messages
        texts = ["".join(part.text for part in message.content) for message in messages]
        assert texts == [
            text
            for number in range(3)
            for text in (f"{name} {session} {number}", f"You said: {name} {session} {number}")
        ]


async def test_i13_a_request_of_the_same_id_is_one_for_each_tenant(place: Place) -> None:
    session = await place.sessions()
    turns: dict[str, set[str]] = {name: set() for name in TENANTS}
    for side in (place.here, place.there):
        for name in TENANTS:
            turn = await harness.send_message_to_session(side[name], session, f"once {name}", request_id="same")
            assert harness.answer_of(turn) == f"You said: once {name}"
            turns[name].add(turn.turn_id)
    assert [len(ids) for ids in turns.values()] == [1, 1]


async def test_i13_lists_and_approvals_are_those_of_the_own_tenant(place: Place) -> None:
    session = await place.sessions()
    pending: dict[str, approval_pb2.Approval] = {}
    for name in TENANTS:
        await harness.send_message_to_session(place.here[name], session, f"ask {name}-{session}")
        pending[name] = await harness.wait_for_approval(place.there[name], session)
    for name in TENANTS:
        stubs = place.there[name]
        listed = await stubs.approvals.ListApprovals(approval_pb2.ListApprovalsRequest(session_id=session))
        assert [approval.approval_id for approval in listed.approvals] == [pending[name].approval_id]
        assert f"{name}-{session}" in pending[name].arguments_json
        sessions = (await stubs.sessions.ListSessions(session_pb2.ListSessionsRequest())).sessions
        assert [listed.session_id for listed in sessions].count(session) == 1
        turns = (await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))).turns
        assert [turn.pending[0].approval_id for turn in turns] == [pending[name].approval_id]
    await harness.decide(place.there["amber"], pending["amber"])
    (turn,) = (await place.here["amber"].chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))).turns
    ended = await harness.wait_for_turn(place.here["amber"], session, turn.turn_id)
    assert ended.state == chat_pb2.TURN_STATE_COMPLETED
    (left,) = (await place.here["birch"].chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))).turns
    assert left.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
    await harness.decide(place.here["birch"], pending["birch"], approve=False)


async def _follow(stubs: Stubs, session: str, reader: Reader) -> None:
    async for _ in watch(stubs, session, reader):
        pass
