"""I11: session, turn, approval and ledger documents equal the fold of the log."""

import asyncio
import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
from grpc import aio
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check, differences
from tests.e2e.support.environment import Environment
from tests.e2e.support.polling import eventually
from tests.harness import Stubs
from tests.status_details import details_of
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SESSIONS = 16
CALLS = 14
EXPECTED = frozenset(
    {
        "TURN_IN_PROGRESS",
        "TURN_NOT_RETRYABLE",
        "SESSION_NOT_ACTIVE",
        "APPROVAL_ALREADY_PROCESSED",
        "LLM_RATE_LIMIT",
        "BUDGET_EXCEEDED",
    }
)
"""The refusals that a caller may get that does not look first."""
SCRIPT = """
[[reply]]
match = "act"
tool_calls = [
    { name = "act", arguments = { label = "fold" } },
    { name = "add", arguments = { a = 1, b = 2 } },
    { name = "nothing_like_it" },
]

[[reply]]
match = "add"
text = "Let me count."
tool_calls = [{ name = "add", arguments = { a = 1, b = 2 } }, { name = "add", arguments = "no JSON" }]

[[reply]]
match = "slow"
text = "A slow and careful answer."
chunk = 5
delay = "30ms"

[[reply]]
match = "quota"
fail = "quota"

[[reply]]
match = "unlucky"
text = "This breaks"
fail = "cut"
fail_after = 1
times = 6

[[reply]]
text = "You said: {user}"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def used(env: Environment) -> Environment:
    """Runs the workload on two servers, then waits until it rests: a copy is made collection by collection."""
    async with env.another() as other, asyncio.TaskGroup() as group:
        for number in range(SESSIONS):
            group.create_task(_use(_Caller([env.stubs, other], random.Random(number))))
        group.create_task(_use_in_each_way(env.stubs))
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        await eventually(lambda: _at_rest(client, env.database), seconds=60)
    return env


class TestI11:
    async def test_i11_after_a_mixed_workload_the_documents_equal_the_fold_of_the_log(self, used: Environment) -> None:
        await check(used.mongo_uri, used.database)

    @pytest.mark.parametrize(
        ("collection", "where", "change"),
        [
            ("heads", {"last_seq": {"$gt": 1}}, {"$inc": {"last_seq": 1}}),
            ("heads", {"fence": {"$gt": 0}}, {"$set": {"fence": 0}}),
            ("heads", {}, {"$set": {"queue": ["ghost"]}}),
            ("events", {"seq": 3}, {"$set": {"seq": 3000}}),
            ("events", {"kind": "turn_started"}, {"$set": {"kind": "turn_queued"}}),
            ("sessions", {"state": "ACTIVE"}, {"$set": {"state": "CREATED"}}),
            ("sessions", {}, {"$inc": {"usage.output_tokens": 1}}),
            ("turns", {"state": "COMPLETED"}, {"$set": {"state": "RUNNING"}}),
            ("turns", {"state": "COMPLETED"}, {"$set": {"answer": []}}),
            ("turns", {"state": "FAILED"}, {"$set": {"error.code": 1}}),
            ("turns", {}, {"$inc": {"usage.tool_calls": 1}}),
            ("tool_calls", {"state": "RETURNED"}, {"$set": {"state": "STARTED"}}),
            ("tool_calls", {"outcome": "OK"}, {"$set": {"outcome": "FAILED"}}),
            ("tool_calls", {"round": 1}, {"$inc": {"round": 1}}),
            ("approvals", {"state": "APPROVED"}, {"$set": {"state": "PENDING"}}),
            ("approvals", {"state": "REJECTED"}, {"$set": {"decided_by": "another"}}),
            ("requests", {"family": "message"}, {"$inc": {"sequence": 1}}),
        ],
    )
    async def test_i11_one_changed_field_is_found(
        self, used: Environment, collection: str, where: Mapping[str, Any], change: Mapping[str, Any]
    ) -> None:
        copy = f"{used.database}_copy"
        async with AsyncMongoClient[dict[str, Any]](used.mongo_uri) as client:
            try:
                await _copy(client, used.database, copy)
                assert not await differences(used.mongo_uri, copy)
                changed = await client[copy][collection].update_one({"tenant": harness.TENANT, **where}, change)
                assert changed.modified_count == 1, "the workload made none of these"
                assert await differences(used.mongo_uri, copy)
            finally:
                await client.drop_database(copy)


_BUSY = [value for value in chat_pb2.IfBusy.values() if value]


async def _at_rest(client: AsyncMongoClient[dict[str, Any]], database: str) -> bool | None:
    """Returns True if no turn is under way, else None. One that waits for a decision rests, and what is queued behind
    it rests, too."""
    turns, heads = client[database].turns, client[database].heads
    moving = {"tenant": harness.TENANT, "state": {"$in": ["PENDING", "RUNNING", "BACKING_OFF"]}}
    active = [head["active_turn"] async for head in heads.find({"tenant": harness.TENANT, "active_turn": {"$gt": ""}})]
    return None if await turns.count_documents(moving | {"id": {"$in": active}}) else True


async def _copy(client: AsyncMongoClient[dict[str, Any]], source: str, target: str) -> None:
    """Copies the database to one where no server sweeps."""
    for name in await client[source].list_collection_names():
        await client[source][name].aggregate([{"$out": {"db": target, "coll": name}}])


class _Caller:
    """A caller that makes random calls on any server, and accepts refusals that fit."""

    def __init__(self, servers: list[Stubs], rng: random.Random) -> None:
        self.rng = rng
        self._servers = servers

    @property
    def stubs(self) -> Stubs:
        return self.rng.choice(self._servers)

    async def send(self, session: str, *, wait: float) -> None:
        text = self.rng.choice(["hello", "act", "add", "slow", "slow", "quota", "unlucky"])
        busy = self.rng.choice(_BUSY)
        await harness.send_message_to_session(self.stubs, session, text, wait=wait, if_busy=busy)

    async def decide(self, session: str, *, approve: bool) -> None:
        pending = await self.stubs.approvals.ListApprovals(
            approval_pb2.ListApprovalsRequest(session_id=session, states=[approval_pb2.APPROVAL_STATE_PENDING])
        )
        for approval in pending.approvals:
            await harness.decide(self.stubs, approval, approve=approve, reason="as the dice say")

    async def cancel(self, session: str) -> None:
        for turn in await self._turns(session):
            if turn.state < chat_pb2.TURN_STATE_COMPLETED:
                await self.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
                return

    async def retry(self, session: str) -> None:
        for turn in (await self._turns(session))[:1]:
            await harness.retry(self.stubs, session, turn.turn_id)

    async def _turns(self, session: str) -> list[chat_pb2.Turn]:
        return list((await self.stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))).turns)


async def _use(caller: _Caller) -> None:
    session = await harness.create_test_session(caller.stubs, agent="asker")
    doings = [
        lambda: caller.send(session, wait=0),
        lambda: caller.send(session, wait=0),
        lambda: caller.send(session, wait=0.3),
        lambda: caller.decide(session, approve=True),
        lambda: caller.decide(session, approve=False),
        lambda: caller.cancel(session),
        lambda: caller.retry(session),
    ]
    for _ in range(CALLS):
        with _minding_nothing():
            await caller.rng.choice(doings)()
    if caller.rng.random() < 0.3:
        await caller.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))


async def _use_in_each_way(stubs: Stubs) -> None:
    """Makes what the dice may not make on a slow machine: an approved call, a rejected one, and a failed turn."""
    for approve in (True, False):
        session = await harness.create_test_session(stubs, agent="asker")
        await harness.send_message_to_session(stubs, session, "act", wait=0)
        approval = await harness.wait_for_approval(stubs, session)
        await harness.decide(stubs, approval, approve=approve, reason="as the test says")
    session = await harness.create_test_session(stubs, agent="asker")
    await harness.send_message_to_session(stubs, session, "quota", wait=0)


@contextlib.contextmanager
def _minding_nothing() -> Iterator[None]:
    try:
        yield
    except aio.AioRpcError as error:
        if details_of(error).reason not in EXPECTED:
            raise
