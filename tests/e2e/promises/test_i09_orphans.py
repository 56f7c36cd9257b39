"""I9, where it is hardest: a server is killed between the first write of a changeset and its commit."""

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import pytest
from grpc import StatusCode, aio

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.server_processes import LEASE, MARGIN, SWEEP, doomed
from turnkeeper.faults import VARIABLE
from turnkeeper.pb.v1 import chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

T = TypeVar("T")
KILLED_IN_A_STEP = {VARIABLE: "step.after_first_write=kill"}
KILLED_IN_THE_ANSWER = {VARIABLE: "step.after_first_write=kill@4"}
"""After the change of a twin and two messages: a session that is created has no head before."""
SETTINGS = {"lease": timedelta(seconds=LEASE), "sweep": timedelta(seconds=SWEEP)}
SCRIPT = """
[[reply]]
match = "^writes"
text = "Never stored."
times = 1

[[reply]]
match = "^thinks"
first_delay = "60s"
text = "Never said."
times = 1

[[reply]]
match = "^asks"
tool_calls = [{ name = "act", arguments = { label = "asked" } }]

[[reply]]
after_tools = 1
text = "Told: {tool_result}"

[[reply]]
text = "Again: {user}"
"""


async def test_i9_a_server_killed_in_the_middle_of_a_write_delays_no_other(env: Environment) -> None:
    """Its writes stay locked in the database until another replica ends its transaction."""
    turns: dict[str, chat_pb2.Turn] = {}
    async with doomed(env, more=KILLED_IN_THE_ANSWER) as server, harness.connect(server.address) as stubs:
        for words in ("thinks", "writes"):
            session = await harness.create_test_session(stubs, agent="talker")
            turns[words] = await harness.send_message_to_session(stubs, session, words, wait=0)
        await server.process.wait()
    killed = time.monotonic()
    for words, turn in turns.items():
        ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id, seconds=60)
        took = time.monotonic() - killed
        assert (ended.state, harness.answer_of(ended)) == (chat_pb2.TURN_STATE_COMPLETED, f"Again: {words}")
        assert took < LEASE + SWEEP + MARGIN, f"{words}: ended {took:.1f} s after its server was killed"


async def test_i9_a_server_killed_while_it_stored_a_message_delays_no_other(env: Environment) -> None:
    """It owned no turn of the session: only its missing heartbeat shows that it is gone."""
    session = await harness.create_test_session(env.stubs, agent="talker")
    async with doomed(env, more=KILLED_IN_A_STEP) as server, harness.connect(server.address) as stubs:
        with pytest.raises(aio.AioRpcError):
            await harness.send_message_to_session(stubs, session, "lost", wait=0)
        await server.process.wait()
    killed = time.monotonic()
    turn = await _at_last(lambda: harness.send_message_to_session(env.stubs, session, "here", request_id=session))
    assert time.monotonic() - killed < LEASE + SWEEP + MARGIN
    assert harness.answer_of(turn) == "Again: here"


async def test_i9_a_server_killed_while_it_stored_a_decision_delays_no_other(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="asker")
    turn = await harness.send_message_to_session(env.stubs, session, "asks", wait=0)
    approval = await harness.wait_for_approval(env.stubs, session)
    async with doomed(env, more=KILLED_IN_A_STEP) as server, harness.connect(server.address) as stubs:
        with pytest.raises(aio.AioRpcError):
            await harness.decide(stubs, approval, approve=False)
        await server.process.wait()
    killed = time.monotonic()
    await _at_last(lambda: harness.decide(env.stubs, approval))
    assert time.monotonic() - killed < LEASE + SWEEP + MARGIN
    ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    assert harness.answer_of(ended) == "Told: asked is done"


async def _at_last(call: Callable[[], Awaitable[T]]) -> T:
    """Repeats the call until the database can be written to. Returns its answer."""
    while True:
        try:
            return await call()
        except aio.AioRpcError as error:
            if error.code() is not StatusCode.UNAVAILABLE:
                raise
