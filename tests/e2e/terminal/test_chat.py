"""`turnkeeper chat` on a pseudo-terminal and in a pipe: what it shows is what is stored."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from tests import harness
from tests.demo import ports
from tests.e2e.support.environment import AGENTS
from tests.e2e.terminal.programs import LARGE, SMALL, CommandLine, send
from tests.pseudo_terminal import CTRL_C
from tests.test_tools import FOLDER, ToolControl
from turnkeeper.pb.v1 import approval_pb2, chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = "\x1b]52;c;ZXZpbA==\x07 \x1b]8;;http://evil\x1b\\link \x1b[2J\x1b[1;1H\nRun it? \u202egnp.exe"
MARKDOWN = "# Results\n\n- **one** is `1`\n- two\n\n```python\nprint(1)\n```\n\n<b>kept</b> ![a](http://b)\nnext line"
SCRIPT = rf"""
[[reply]]
match = "^act"
text = "I ask first."
tool_calls = [{{ name = "act", arguments = {{ label = "x" }} }}]

[[reply]]
match = "^act"
after_tools = 1
text = "Acted."

[[reply]]
match = "^tell"
tool_calls = [{{ name = "count_pages", arguments = {{ label = "the-report" }} }}]

[[reply]]
match = "^tell"
after_tools = 1
text = "Told."

[[reply]]
match = "^hostile"
text = {json.dumps(HOSTILE)}

[[reply]]
match = "^markdown"
text = {json.dumps(MARKDOWN)}
chunk = 3

[[reply]]
match = "^endless"
text = "It goes on and on and on."
chunk = 5
fail = "stall"
fail_after = 10

[[reply]]
match = "^unlucky$"
fail = "server_error"
times = 1

[[reply]]
match = "^unlucky again"
fail = "server_error"

[[reply]]
text = "You said: {{user}}"
"""


async def piped(server: harness.ServerProcess, *arguments: str, lines: str) -> tuple[int | None, str, str]:
    """Runs a chat in a pipe. Returns its exit status, its output and its errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "turnkeeper", "chat", *arguments, "--address", server.address),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(lines.encode()), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert b"\x1b" not in output + errors
    return process.returncode, output.decode(), errors.decode()


def counts(part: str, times: int) -> Callable[[str], bool]:
    """Returns a condition: the part is so many times on the screen."""
    return lambda text: text.count(part) == times


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_whole_chat_with_an_approval_in_place(turnkeeper: CommandLine, size: tuple[int, int]) -> None:
    async with turnkeeper.on_terminal("chat", "asker", size=size) as terminal:
        await terminal.until("with asker; /help lists")
        terminal.type("act now\n")
        await terminal.until("(y/n/e):")
        assert "I ask first." in terminal.text
        terminal.type("\n")
        await terminal.until("Please answer")
        terminal.type("y\n")
        await terminal.until("Acted.\n>")
        assert [line for line in terminal.text.splitlines() if line.startswith("✓ act ")]
        terminal.type("/help\n")
        await terminal.until("/quit     leave")
        terminal.type("/unknown\n")
        await terminal.until("there is no /unknown")
        terminal.type("/fork\n")
        await terminal.until("a copy up to here")
        terminal.type("//fork is a word\n")
        await terminal.until("You said: /fork is a word")
        terminal.type("/cancel\n")
        await terminal.until("no turn waits or runs")
        terminal.type("/decide\n")
        await terminal.until("nothing waits for a decision")
        terminal.type("/quit\n")
        assert await terminal.ended() == 0
        session = terminal.text.rpartition("--session ")[2].split()[0]
    async with turnkeeper.on_terminal("chat", "--session", session) as terminal:
        await terminal.until("You said: /fork is a word\n>")
        assert "> /fork is a word" in terminal.text.splitlines()
        terminal.type("\x04")
        assert await terminal.ended() == 0


async def test_a_call_that_runs_has_how_far_it_is_beside_it(turnkeeper: CommandLine, tool_control: ToolControl) -> None:
    async with turnkeeper.on_terminal("chat", "worker") as terminal:
        await terminal.until("with worker; /help lists")
        terminal.type("tell me\n")
        await terminal.until('count_pages {"label":"the-report"} … the-report is half done')
        tool_control.release("the-report")
        await terminal.until("Told.\n>")
        assert "half done" not in terminal.text, "it is gone with the call"
        terminal.type("/quit\n")
        assert await terminal.ended() == 0


async def test_a_chat_goes_on_with_a_turn_that_waits(turnkeeper: CommandLine, stubs: Any) -> None:
    turn = await send(stubs, "asker", "act later")
    async with turnkeeper.on_terminal("chat", "--session", turn.session_id) as terminal:
        await terminal.until("(y/n/e):")
        terminal.type(CTRL_C)
        await terminal.until("the turn waits; /decide asks again, /cancel ends it\n>")
        terminal.type("Hello?\n")
        await terminal.until("waits for a decision on act.\n")
        await terminal.until("in its place? (y/n):")
        terminal.type("n\n")
        await terminal.until("the message was not sent; the turn waits: /decide asks about it, /cancel ends it\n>")
        terminal.type("/cancel\n")
        await terminal.until("cancelled\n>")
        terminal.type("/retry\n")
        await terminal.until("Acted.\n>")
        terminal.type("/quit\n")
        assert await terminal.ended() == 0


async def test_a_question_that_was_left_is_asked_again(turnkeeper: CommandLine, stubs: Any) -> None:
    turn = await send(stubs, "asker", "act later")
    async with turnkeeper.on_terminal("chat", "--session", turn.session_id) as terminal:
        for times in (1, 2):
            await terminal.until(counts("(y/n/e):", times))
            terminal.type(CTRL_C)
            await terminal.until(counts("/decide asks again, ", times))
            terminal.type("/decide\n")
        await terminal.until(counts("(y/n/e):", 3))
        terminal.type("y\n")
        await terminal.until("Acted.\n>")
        assert terminal.text.count("✓ act ") == 1
        terminal.type("/quit\n")
        assert await terminal.ended() == 0


async def test_a_message_takes_the_place_of_a_turn_that_waits_if_the_person_says_so(
    turnkeeper: CommandLine, stubs: Any
) -> None:
    turn = await send(stubs, "asker", "act never")
    async with turnkeeper.on_terminal("chat", "--session", turn.session_id) as terminal:
        await terminal.until("(y/n/e):")
        terminal.type(CTRL_C)
        await terminal.until("/cancel ends it\n>")
        terminal.type("Hello instead\n")
        await terminal.until("in its place? (y/n):")
        terminal.type("y\n")
        await terminal.until("You said: Hello instead\n>")
        terminal.type("/quit\n")
        assert await terminal.ended() == 0
    request = chat_pb2.GetTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id)
    assert stubs.chat.GetTurn(request).turn.state == chat_pb2.TURN_STATE_CANCELLED


async def test_a_question_ends_when_another_decides(turnkeeper: CommandLine, stubs: Any) -> None:
    async with turnkeeper.on_terminal("chat", "asker") as terminal:
        await terminal.until("leaves\n>")
        terminal.type("act together\n")
        await terminal.until("(y/n/e):")
        terminal.type("y no Enter yet")
        request = approval_pb2.ListApprovalsRequest(states=[approval_pb2.APPROVAL_STATE_PENDING], page_size=100)
        (waiting,) = [
            approval
            for approval in stubs.approvals.ListApprovals(request).approvals
            if approval.session_id.endswith(_session_of(terminal.text))
        ]
        await turnkeeper("approve", waiting.approval_id, "--yes")
        await terminal.until(f"approval {waiting.approval_id} is approved by default already")
        await terminal.until("Acted.\n>")
        terminal.type("Hello\n")
        await terminal.until("You said: Hello\n>")
        terminal.type("/quit\n")
        assert await terminal.ended() == 0


def _session_of(text: str) -> str:
    return text.partition("session ")[2].split()[0]


async def test_what_was_typed_before_the_prompt_counts_a_ctrl_d_too(turnkeeper: CommandLine) -> None:
    async with turnkeeper.on_terminal("chat", "talker") as terminal:
        terminal.type("\x04")
        assert await terminal.ended() == 0
        assert "goes on" in terminal.text
    async with turnkeeper.on_terminal("chat", "talker") as terminal:
        terminal.type("Hello\n\x04")
        await terminal.until("> Hello\nYou said: Hello")
        assert await terminal.ended() == 0


async def test_what_a_model_writes_is_text_and_markdown_loses_none_of_it(turnkeeper: CommandLine) -> None:
    async with turnkeeper.on_terminal("chat", "talker") as terminal:
        await terminal.until("leaves\n>")
        terminal.type("hostile\n")
        await terminal.until("gnp.exe\n>")
        assert (
            "\\u001b]52;c;ZXZpbA==\\u0007 \\u001b]8;;http://evil\\u001b\\link \\u001b[2J\\u001b[1;1H"
            in terminal.text.splitlines()
        )
        assert r"Run it? \u202egnp.exe" in terminal.text.splitlines()
        assert b"\x1b]" not in terminal.raw
        terminal.type("markdown\n")
        await terminal.until("next line\n>")
        for line in ("Results", "one is 1", "print(1)", "<b>kept</b>", "http://b"):
            assert line in terminal.text
        assert "**" not in terminal.text
        terminal.type("/quit\n")
        assert await terminal.ended() == 0


async def test_ctrl_c_cancels_a_turn_and_a_failed_one_is_retried(turnkeeper: CommandLine) -> None:
    async with turnkeeper.on_terminal("chat", "hasty") as terminal:
        await terminal.until("leaves\n>")
        terminal.type("endless\n")
        await terminal.until("It goes on")
        terminal.type(CTRL_C)
        await terminal.until("cancelled\n>")
        terminal.type("unlucky\n")
        await terminal.until("/retry tries it again\n>")
        terminal.type("/retry\n")
        await terminal.until("You said: unlucky\n>")
        terminal.type("endless\n")
        await terminal.until(lambda text: text.count("It goes on") == 2)
        terminal.type(CTRL_C)
        await terminal.until(lambda text: text.count("\ncancelled\n>") == 2)
        terminal.type(CTRL_C)
        assert await terminal.ended() == 130


async def test_a_chat_whose_last_turn_failed_ends_with_status_1(turnkeeper: CommandLine) -> None:
    async with turnkeeper.on_terminal("chat", "hasty") as terminal:
        await terminal.until("leaves\n>")
        terminal.type("unlucky again\n")
        await terminal.until("/retry tries it again\n>")
        terminal.type("/quit\n")
        assert await terminal.ended() == 1


async def test_a_second_ctrl_c_leaves_a_server_that_does_not_answer(
    turnkeeper: CommandLine, server: harness.ServerProcess
) -> None:
    async with turnkeeper.on_terminal("chat", "hasty") as terminal:
        await terminal.until("leaves\n>")
        terminal.type("endless\n")
        await terminal.until("It goes on")
        server.process.send_signal(signal.SIGSTOP)
        try:
            terminal.type(CTRL_C)
            await terminal.until("cancelling; Ctrl-C again leaves")
            terminal.type(CTRL_C)
            assert await terminal.ended() == 130
        finally:
            server.process.send_signal(signal.SIGCONT)


async def test_in_a_pipe_a_line_is_a_message_and_nothing_is_approved(server: harness.ServerProcess, stubs: Any) -> None:
    answered, waiting, failed, printed = await asyncio.gather(
        piped(server, "talker", lines="Hello\n\nhostile\n"),
        piped(server, "asker", lines="act\nnever sent\n"),
        piped(server, "hasty", lines="unlucky again\nnever sent\n"),
        piped(server, "talker", "--json", lines="Hello\nAgain\n"),
    )
    assert answered[0] == 0
    assert answered[1].startswith("You said: Hello\n\\u001b]52;c;")
    status, output, _ = waiting
    assert status == 3
    assert output.startswith("I ask first.\nwaits for a decision: ")
    approval = output.partition("turnkeeper approve ")[2].split()[0]  # a command for the reader's shell
    assert len(approval) == 26
    assert failed[:2] == (1, "")
    assert failed[2].startswith("the turn failed: ")
    turns = [json.loads(line) for line in printed[1].splitlines()]
    assert [turn["answer"] for turn in turns] == [[{"text": "You said: Hello"}], [{"text": "You said: Again"}]]
    request = chat_pb2.GetTurnRequest(session_id=turns[0]["sessionId"], turn_id=turns[0]["turnId"])
    assert turns[0] == MessageToDict(stubs.chat.GetTurn(request).turn)


HALF = "Zürich liegt am See und hat viele Brücken, darunter eine sehr alte aus Holz: 漢字漢字漢字漢字漢"
WHOLE = "Zürich liegt am Fluss und hat viele Brücken, darunter eine alte aus Holz mit Dach.\n\nSie heißt 木橋."
CUT = f"""
[[reply]]
text = "{HALF} und mehr"
chunk = 1
fail = "stall"
fail_after = {len(HALF)}
times = 1

[[reply]]
text = {json.dumps(WHOLE)}
"""


async def test_a_decision_is_sent_until_a_server_takes_it(
    mongo_uri: str, database_name: str, tool_control: ToolControl
) -> None:
    flags = ("--port", str(ports.free_port()), "--agents", str(AGENTS), "--identity", "none")
    variables = {"PYTHONPATH": str(tool_control.folder), FOLDER: str(tool_control.folder)}
    async with harness.scripted(SCRIPT) as model:
        served = partial(harness.server_process, mongo_uri, database_name, model, flags=flags, variables=variables)
        async with served() as killed, CommandLine(killed.address).on_terminal("chat", "asker") as terminal:
            await terminal.until("leaves\n>")
            terminal.type("act at last\n")
            await terminal.until("(y/n/e):")
            await killed.kill()
            terminal.type("y\n")
            await terminal.until("no answer from the service; trying again until Ctrl-C")
            async with served() as server:
                await terminal.until("Acted.\n>")
                await server.terminate()
                terminal.type("/quit\n")
                assert await terminal.ended() == 0
            assert "goaway" not in terminal.text.lower(), "gRPC writes nothing onto the screen"


async def test_the_screen_is_the_stored_message_after_the_server_was_killed_in_mid_answer(
    mongo_uri: str, database_name: str
) -> None:
    flags = ("--port", str(ports.free_port()), "--identity", "none")
    async with (
        harness.scripted(CUT) as model,
        harness.server_process(mongo_uri, database_name, model, flags=flags) as killed,
        CommandLine(killed.address).on_terminal("chat", "assistant") as terminal,
    ):
        await terminal.until("leaves\n>")
        terminal.type("Where?\n")
        await terminal.until("漢字漢字漢字漢字漢")
        await killed.kill()
        await terminal.until("no answer from the service for 3 s; trying again")
        async with harness.server_process(mongo_uri, database_name, model, flags=flags):
            await terminal.until("木橋.\n>")
            terminal.type("Again?\n")
            await terminal.until(lambda text: text.count("木橋.\n>") == 2)
            terminal.type("/quit\n")
            assert await terminal.ended() == 0
    at = terminal.text.splitlines().index("> Where?")
    shown = terminal.text.splitlines()[at + 1 : terminal.text.splitlines().index("> Again?")]
    assert shown.pop(0) == "another server took the turn up"
    first, rest = WHOLE.partition(" Dach")[0], WHOLE.partition("mit ")[2]
    assert shown == [first, *rest.splitlines()]
