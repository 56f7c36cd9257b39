"""Due turns of one tenant, however many, do not keep another tenant's turn waiting."""

import asyncio
import json
import time
from datetime import timedelta
from pathlib import Path

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.identities import NamedCredentials, connect_as, row
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import chat_pb2

MANY = 60
SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
match = '^ask (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""


async def test_the_one_turn_of_another_tenant_runs_next(
    mongo_uri: str, tmp_path: Path, tool_control: ToolControl
) -> None:
    """The server's one place is held, while the turns of both tenants become due."""
    principals = tmp_path / "principals.toml"
    roles = ["caller", "approver"]
    principals.write_text(row("ben", tenant="busy", roles=roles) + row("flo", tenant="quiet", roles=roles))
    database = f"turnkeeper_test_{time.time_ns():x}"
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(
            mongo_uri,
            database,
            model,
            agents=AGENTS,
            authenticator=NamedCredentials(),
            principals=principals,
            concurrency=1,
            accept_wait=timedelta(hours=1),
        ) as running,
        connect_as(running.address, "busy/ben") as ben,
        connect_as(running.address, "quiet/flo") as flo,
    ):

        async def asking(number: int) -> str:
            session = await harness.create_test_session(ben, agent="asker")
            turn = await harness.send_message_to_session(ben, session, f"ask {number}", wait=60)
            assert turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
            return session

        sessions = [await asking(number) for number in range(MANY)]
        approvals = await asyncio.gather(*(harness.wait_for_approval(ben, session) for session in sessions))
        holding = await harness.create_test_session(ben, agent="worker")
        await harness.send_message_to_session(ben, holding, "hold place", wait=0)
        await tool_control.started("place")
        await asyncio.gather(*(harness.decide(ben, approval) for approval in approvals))
        session = await harness.create_test_session(flo, agent="talker")
        turn = await harness.send_message_to_session(flo, session, "hello", wait=0)
        assert turn.state == chat_pb2.TURN_STATE_PENDING
        before = len(model.exchanges.all())
        tool_control.release("place")
        ended = await harness.wait_for_turn(flo, session, turn.turn_id)
        assert harness.answer_of(ended) == "You said: hello"
        texts = [json.loads(exchange.body)["messages"][-1]["content"] for exchange in model.exchanges.all()[before:]]
        assert "hello" in texts[:3], "the held turn's answer and one further turn may come first"
