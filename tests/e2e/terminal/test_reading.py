"""Commands that read: what they print is what the RPC returns, and what others wrote is text."""

import asyncio
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from tests.e2e.terminal.programs import CommandLine, send
from turnkeeper.command_line import main
from turnkeeper.pb.v1 import agent_pb2, chat_pb2, operator_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = "\x1b]52;c;ZXZpbA==\x07 \x1b]8;;http://evil\x1b\\link \x1b[2J\x1b[1;1H\nApprove this? [y/n] \u202egnp.exe"
SCRIPT = rf"""
[[reply]]
match = "^add"
tool_calls = [{{ name = "add", arguments = {{ a = 1, b = 2 }} }}]

[[reply]]
match = "^act"
tool_calls = [{{ name = "act", arguments = {{ label = "x" }} }}]

[[reply]]
match = "^hostile"
text = {json.dumps(HOSTILE)}

[[reply]]
text = "Yes, so it is."
"""


def asdict(message: Message) -> Any:
    return MessageToDict(message)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answered(stubs: Any) -> chat_pb2.Turn:
    """A session with an answer."""
    return await send(stubs, "worker", "add one and two")


async def test_json_is_the_response_of_the_rpc(turnkeeper: CommandLine, stubs: Any, answered: chat_pb2.Turn) -> None:
    waiting = await send(stubs, "asker", "act")
    sessions = stubs.sessions.ListSessions(session_pb2.ListSessionsRequest(page_size=50))
    assert len(sessions.sessions) == 2
    assert (await turnkeeper("sessions", "--json")).json == asdict(sessions)
    first = stubs.sessions.ListSessions(session_pb2.ListSessionsRequest(page_size=1, agent="asker", mine=True))
    assert (await turnkeeper("sessions", "--mine", "--agent", "asker", "--limit", "1", "--json")).json == asdict(first)

    agents = stubs.agents.ListAgents(agent_pb2.ListAgentsRequest(page_size=100))
    assert (await turnkeeper("agents", "--json")).json == asdict(agents)
    asker = stubs.agents.GetAgent(agent_pb2.GetAgentRequest(name="asker"))
    assert {tool.name: tool.rule for tool in asker.tools}["act"] == "act*"
    assert (await turnkeeper("tools", "asker", "--json")).json == asdict(asker)

    events = stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=answered.session_id, page_size=100))
    assert (await turnkeeper("show", answered.session_id, "--json")).json == asdict(events)
    lines = (await turnkeeper("export", answered.session_id[-6:])).lines
    assert lines == asdict(events)["events"]
    assert (await turnkeeper("show", answered.session_id, "--json")).json["cursor"] == events.cursor

    assert (await turnkeeper("health", "--json")).json == {"status": "SERVING"}
    turns = stubs.operator.ListActiveTurns(operator_pb2.ListActiveTurnsRequest(page_size=100))
    printed = (await turnkeeper("turns", "--json")).json
    assert [turn["turnId"] for turn in printed["turns"]] == [waiting.turn_id]
    for shown, turn in zip(printed["turns"], asdict(turns)["turns"], strict=True):
        assert {**shown, "age": ""} == {**turn, "age": ""}


async def test_a_fork_goes_its_own_way(turnkeeper: CommandLine, stubs: Any, answered: chat_pb2.Turn) -> None:
    whole = (await turnkeeper("fork", answered.session_id)).output.strip()
    part = (await turnkeeper("fork", answered.session_id, "--at", "2", "--json")).json["session"]
    assert len({answered.session_id, whole, part["sessionId"]}) == 3
    counts = [
        len(stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session)).messages)
        for session in (whole, part["sessionId"])
    ]
    assert counts[0] > counts[1]
    refused = await turnkeeper("fork", answered.session_id, "--at", "999999999", status=5)
    assert "turnkeeper: " in refused.errors


async def test_what_a_model_wrote_is_text(turnkeeper: CommandLine, stubs: Any) -> None:
    turn = await send(stubs, "talker", f"hostile {HOSTILE}")
    assert turn.answer[0].text == HOSTILE
    for arguments in (["show", turn.session_id], ["export", turn.session_id, "--format", "md"], ["sessions"]):
        shown = (await turnkeeper(*arguments)).output
        assert not set(shown) & set("\x1b\x07\u202e")
        if arguments[0] != "sessions":
            assert r"\u001b]52;c;ZXZpbA==\u0007" in shown
            assert r"\u202egnp.exe" in shown
    story = (await turnkeeper("show", turn.session_id)).output
    assert not [line for line in story.splitlines() if line.startswith("Approve this?")]
    assert "          Approve this?" in story


async def test_the_story_of_a_session(turnkeeper: CommandLine, stubs: Any, answered: chat_pb2.Turn) -> None:
    story = (await turnkeeper("show", answered.session_id[-8:])).output
    for words in (
        "default began a session with worker",
        "default: add one and two",
        'call add {"a":1,"b":2}',
        "add ok in ",
        "model: Yes, so it is.",
        "done: ",
    ):
        assert words in story
    markdown = (await turnkeeper("export", answered.session_id, "--format", "md")).output
    assert "## default\n\nadd one and two\n" in markdown
    assert '**add** was called with\n\n```json\n{"a":1,"b":2}\n```' in markdown
    assert "## model\n\nYes, so it is.\n" in markdown


async def test_tools_show_what_happens_to_a_call_and_why(turnkeeper: CommandLine) -> None:
    shown = (await turnkeeper("tools", "asker", "--schemas")).output
    rows = {words[0]: words for line in shown.splitlines() if (words := line.split()) and len(words) > 4}
    assert rows["act"][1:6] == ["asks", "a", "person", "rule", "act*"]
    assert rows["send_message"][1:4] == ["is", "denied", "rule"]
    assert '"properties"' in shown
    assert "class idempotent" in (await turnkeeper("tools", "plain")).output


async def test_a_file_of_agents_is_checked_for_a_program_too(tmp_path: Path) -> None:
    file = tmp_path / "agents.toml"
    file.write_text('[[agent]]\nname = "desk"\n')

    def check(*flags: str) -> tuple[int, str, str]:
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = main(["agents", "check", str(file), *flags])
        return status, output.getvalue(), errors.getvalue()

    assert await asyncio.to_thread(check) == (0, f"{file} is in order: desk\n", "")
    status, output, errors = await asyncio.to_thread(check, "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output) == {"file": str(file), "ok": True, "agents": ["desk"], "warnings": [], "message": ""}
    file.write_text('[[agent]]\nnam = "desk"\n')
    status, output, errors = await asyncio.to_thread(check, "--json")
    finding = json.loads(output)
    assert (status, errors, finding["ok"], finding["agents"]) == (1, "", False, [])
    assert f"{file}:2: " in finding["message"]


async def test_what_cannot_be_told_apart_or_does_not_exist(
    turnkeeper: CommandLine, stubs: Any, answered: chat_pb2.Turn
) -> None:
    for name in ("one-same-end", "two-same-end"):
        stubs.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id=name, agent="talker"))
    both = (await turnkeeper("show", "same-end", status=2)).errors
    assert "2 ids of sessions end with 'same-end'" in both
    assert "one-same-end" in both
    missing = (await turnkeeper("show", "xyzxyz", status=5)).errors
    assert "there is no session 'xyzxyz' that you may see. `turnkeeper sessions` lists them" in missing
    assert "at least 6 characters" in (await turnkeeper("show", answered.session_id[-3:], status=5)).errors
    assert "turnkeeper: " in (await turnkeeper("tools", "\x1b[2J", status=5)).errors


async def test_a_server_that_does_not_answer(turnkeeper: CommandLine) -> None:
    nothing_there = CommandLine("127.0.0.1:1")
    errors = (await nothing_there("sessions", status=4)).errors
    assert errors.startswith("turnkeeper: nothing answers at 127.0.0.1:1: start a server with `turnkeeper dev`")
    assert len(errors.splitlines()) == 1
    wrong = CommandLine("http://127.0.0.1:1")
    assert "write it without http://" in (await wrong("sessions", status=2)).errors
