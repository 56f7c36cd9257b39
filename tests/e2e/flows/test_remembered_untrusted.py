"""A decision on a whole tool approves no call of a model that has read what an untrusted tool returned."""

from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from tests import harness
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

SCRIPT = r"""
[[reply]]
match = '^read (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "read_page", arguments = { label = "{label}" } }]

[[reply]]
text = "Read."
"""
AGENTS = """
[[agent]]
name = "reader"
tools = ["read_page"]
[[agent.policy]]
tool = "read_page"
action = "approve"
"""
TOOL, ARGUMENTS = event_pb2.REMEMBER_SCOPE_TOOL, event_pb2.REMEMBER_SCOPE_ARGUMENTS
APPROVE = event_pb2.APPROVAL_DECISION_APPROVE
WAITS, DONE = chat_pb2.TURN_STATE_AWAITING_APPROVAL, chat_pb2.TURN_STATE_COMPLETED
HOUR = Duration(seconds=3600)


@pytest.mark.asyncio
async def test_by_tool_never_for_untrusted_calls(
    mongo_uri: str, database_name: str, tool_control: ToolControl, tmp_path: Path
) -> None:
    tool_control.install("tests.e2e.support.page_tools")
    agents = tmp_path / "agents.toml"
    agents.write_text(AGENTS)
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model, agents=agents) as running,
        harness.connect(running.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="reader")

        async def approval_of(text: str) -> approval_pb2.Approval:
            turn = await harness.send_message_to_session(stubs, session, text)
            assert turn.state == WAITS
            return await harness.get_approval(stubs, turn.pending[0].approval_id)

        first = await approval_of("read news")
        await harness.answer(stubs, first, APPROVE, remember=TOOL, remember_for=HOUR)
        await harness.wait_for_turn(stubs, session, first.turn_id)
        second = await approval_of("read more")  # asks, although the decision is on the whole tool
        with refused("INVALID_REQUEST") as refusal:
            await harness.answer(stubs, second, APPROVE, remember=TOOL, remember_for=HOUR)
        assert "what an untrusted tool returned" in refusal.details.message
        await harness.answer(stubs, second, APPROVE, remember=ARGUMENTS, remember_for=HOUR)
        await harness.wait_for_turn(stubs, session, second.turn_id)
        same = await harness.send_message_to_session(stubs, session, "read more")
        assert same.state == DONE, "a decision on exactly these arguments counts"
