"""Everything at once: clients of two servers send, cancel, retry and decide at random on a few sessions.

Each call ends well or with a fitting error of the service. When it is over every turn has ended, and the module's own
checks hold: no call without its result, documents equal to the logs, nothing failed inside.
"""

import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta

import pytest
from grpc import aio

from tests import harness
from tests.e2e.support.environment import Environment
from tests.status_details import details_of
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^tools'
tool_calls = [{ name = "add", arguments = { a = 1, b = 2 } }, { name = "act", arguments = { label = "storm" } }]

[[reply]]
match = '^slow'
text = "A slow answer that takes a while to be said in full."
chunk = 4
delay = "4ms"

[[reply]]
match = '^broken'
fail = "bad_request"

[[reply]]
text = "You said: {user}"
"""
FITTING = {
    "AGENT_CONFIG_ERROR",
    "APPROVAL_ALREADY_PROCESSED",
    "APPROVAL_EXPIRED",
    "OVERLOADED",  # the machine has other work, too
    "TURN_IN_PROGRESS",
    "TURN_NOT_RETRYABLE",
}
ENDED = {chat_pb2.TURN_STATE_COMPLETED, chat_pb2.TURN_STATE_FAILED, chat_pb2.TURN_STATE_CANCELLED}
SENDS = 6
"""So many of ten calls send a message."""


async def pending_of(stubs: harness.Stubs, session: str) -> Sequence[approval_pb2.Approval]:
    listed = await stubs.approvals.ListApprovals(
        approval_pb2.ListApprovalsRequest(session_id=session, states=[approval_pb2.APPROVAL_STATE_PENDING])
    )
    return listed.approvals


async def act_at_random(rng: random.Random, stubs: harness.Stubs, session: str) -> None:
    """Makes one call, or reads the session and makes a call that fits."""
    kind = rng.randrange(10)
    if kind < SENDS:
        if_busy = rng.choice([chat_pb2.IF_BUSY_REJECT, chat_pb2.IF_BUSY_ENQUEUE, chat_pb2.IF_BUSY_INTERRUPT])
        words = rng.choice(["tools", "slow", "hello", "broken"])
        await harness.send_message_to_session(stubs, session, words, wait=rng.choice([0, 0.05]), if_busy=if_busy)
        return
    if kind > SENDS + 1:
        for approval in await pending_of(stubs, session):
            await harness.decide(stubs, approval, approve=rng.random() < 0.6)
        return
    turns = (await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session, page_size=4))).turns
    if turns and kind == SENDS:
        turn_id = rng.choice(turns).turn_id
        await stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn_id))
    elif turns:
        request_id = harness.new_request_id()
        await stubs.chat.RetryTurn(
            chat_pb2.RetryTurnRequest(session_id=session, turn_id=turns[0].turn_id, request_id=request_id)
        )


async def client(seed: int, servers: Sequence[harness.Stubs], sessions: Sequence[str]) -> set[str]:
    """Makes many calls. Returns the reasons of those that were refused."""
    rng = random.Random(seed)
    refusals: set[str] = set()
    for _ in range(25):
        try:
            await act_at_random(rng, rng.choice(servers), rng.choice(sessions))
        except aio.AioRpcError as error:
            refusals.add(details_of(error).reason)
    return refusals


async def until_calm(stubs: harness.Stubs, session: str) -> None:
    """Decides pending approvals until no turn is active."""
    while True:
        response = await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
        if not response.session.active_turn_id:
            assert response.session.queued_turns == 0
            return
        await harness.wait_for_turn(stubs, session, response.session.active_turn_id)
        for approval in await pending_of(stubs, session):
            await harness.decide(stubs, approval)


class TestStorm:
    async def test_after_a_storm_every_turn_has_ended(self, env: Environment) -> None:
        agents = ("asker", "worker", "hasty", "asker")
        sessions = [await harness.create_test_session(env.stubs, agent=agent) for agent in agents]
        async with env.another(sweep=timedelta(milliseconds=50), concurrency=2) as other:
            refusals = await asyncio.gather(*(client(seed, (env.stubs, other), sessions) for seed in range(6)))
            assert set().union(*refusals) <= FITTING
            for session in sessions:
                async with asyncio.timeout(30):
                    await until_calm(other, session)
                listed = await other.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session, page_size=100))
                assert {turn.state for turn in listed.turns} <= ENDED
