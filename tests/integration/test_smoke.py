"""One real request through every layer."""

from pathlib import Path

import pytest

from tests import harness
from turnkeeper.tools.samples import OUTBOX


async def test_a_message_a_tool_an_approval_and_an_answer(
    mongo_uri: str, database_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUTBOX, str(tmp_path / "outbox.jsonl"))
    script = """
    [[reply]]
    match = "tell Ada"
    tool_calls = [{ name = "send_message", arguments = { to = "Ada", text = "hello" } }]

    [[reply]]
    after_tools = 1
    text = "Done: {tool_result}"
    """
    async with (
        harness.scripted(script) as model,
        harness.serving(mongo_uri, database_name, model) as running,
        harness.connect(running.address) as stubs,
    ):
        session = await harness.create_test_session(stubs)
        turn = await harness.send_message_to_session(stubs, session, "tell Ada")
        assert turn.pending[0].tool == "send_message"
        approval = await harness.wait_for_approval(stubs, session)
        await harness.decide(stubs, approval)
        ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert len((tmp_path / "outbox.jsonl").read_text().splitlines()) == 1
        assert harness.answer_of(ended) == "Done: Sent to Ada."
        assert harness.kinds(await harness.all_events(stubs, session)) == [
            "session_created",
            "message_received",
            "session_activated",
            "turn_started",
            "message_completed",
            "tool_called",
            "approval_requested",
            "approval_voted",
            "approval_decided",
            "tool_started",
            "tool_returned",
            "message_completed",
            "turn_completed",
        ]
