"""Every Python snippet of the README runs, as it stands, against a real server with a scripted model."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from turnkeeper_client import Client, Session, sync
from turnkeeper_client.pb.v1.approval_pb2 import APPROVAL_STATE_REJECTED
from turnkeeper_client.pb.v1.chat_pb2 import TURN_STATE_COMPLETED

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
SCRIPT = """
# Of the clerk's snippets: first answers, then tool calls that wait for a person.
[[reply]]
match = "Italy"
times = 1
text = "You said: {user}"

[[reply]]
match = "story"
times = 2
text = "You said: {user}"

[[reply]]
match = "Italy|story"
tool_calls = [{ name = "send_message", arguments = { to = "Ada", text = "Wait." } }]

[[reply]]
match = "door"
tool_calls = [{ name = "send_message", arguments = { to = "Ada", text = "The door is open." } }]

[[reply]]
match = "door"
after_tools = 1
text = "I told her."

[[reply]]
match = "unlucky"
times = 1
fail = "server_error"

[[reply]]
text = "You said: {user}"
"""
AGENTS = """
[[agent]]
name = "assistant"
instructions = "You are a helpful assistant."
limits = { max_attempts = 1 }

[[agent]]
name = "clerk"
instructions = "You are a careful clerk."
tools = ["send_message"]
policy = [{ tool = "send_message", action = "approve" }]
"""

pytestmark = pytest.mark.skipif(find_spec("turnkeeper") is None, reason="needs the service: pip install -e .")


@asynccontextmanager
async def command(*arguments: str, folder: Path, ready: str) -> AsyncIterator[str]:
    """Runs `turnkeeper …`; gives what stands behind `ready` in its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "turnkeeper", *arguments), cwd=folder, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while not (line := (await process.stdout.readline()).decode()).startswith(ready):
                assert line, "the command ended"
        yield line.removeprefix(ready).strip()
    finally:
        process.terminate()
        await process.communicate()


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[str]:
    """Starts a server with the agents and the script above. Yields its address."""
    (folder / "agents.toml").write_text(AGENTS, encoding="utf-8")
    (folder / "script.toml").write_text(SCRIPT, encoding="utf-8")
    async with AsyncExitStack() as stack:
        model = command("model", "scripted", "--script", "script.toml", folder=folder, ready="scripted model: ")
        base_url = await stack.enter_async_context(model)
        flags = ["--embedded", "--port=0", "--drain-delay=0s", "--agents=agents.toml", f"--openai-base-url={base_url}"]
        serving = command("serve", *flags, folder=folder, ready="turnkeeper: serving on ")
        yield await stack.enter_async_context(serving)


def snippet(name: str) -> Any:
    """Returns the function of that name, as the README defines it."""
    source = next(text for text in SNIPPETS if f"def {name}(" in text)
    scope: dict[str, Any] = {}
    exec(compile(source.replace("asyncio.run(main())", ""), f"README.md: {name}", "exec"), scope)
    return scope[name]


async def test_every_snippet_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNKEEPER_SAMPLE_OUTBOX", str(tmp_path / "outbox.jsonl"))

    def shown() -> str:
        return capsys.readouterr().out

    async with service(tmp_path) as address, Client(address) as client:
        first = snippet("main")
        monkeypatch.setitem(first.__globals__, "Client", lambda _: Client(address))
        await first()
        assert shown() == "You said: What is the capital of France?\n"

        blocking = snippet("ask_and_wait")
        monkeypatch.setitem(blocking.__globals__, "Client", lambda _: sync.Client(address))
        await asyncio.to_thread(blocking)
        assert shown() == "You said: What is the capital of France?\n"

        await snippet("test_my_program")()

        session = await client.sessions.create("clerk")
        await snippet("ask")(session)
        assert "COMPLETED You said: And of Italy?" in shown()

        await snippet("whole_messages")(session)
        assert shown() == "You said: Tell me a story. []\n"

        await snippet("stream")(session)
        assert "You said: Tell me a story." in shown()

        await snippet("follow")(session, "")
        assert "message_completed" in shown()

        await snippet("approve_what_it_asks")(client, session)
        assert shown() == 'send_message {"text":"The door is open.","to":"Ada"}\nI told her.'
        assert len((tmp_path / "outbox.jsonl").read_text().splitlines()) == 1

        await on_waiting_turns(session, shown)

        other = await client.sessions.create("clerk")
        turn = await other.send("The door again.")
        await snippet("reject_all")(client)
        approval = await client.approvals.wait(turn.pending[0].approval_id)
        assert approval.state == APPROVAL_STATE_REJECTED

        unlucky = await client.sessions.create("assistant")
        await snippet("ask_again")(unlucky, "I am unlucky.")
        turns = [await unlucky.turn(turn.turn_id, wait=timedelta(seconds=10)) async for turn in unlucky.turns()]
        assert [(turn.state, turn.attempt) for turn in turns] == [(TURN_STATE_COMPLETED, 2)]


async def on_waiting_turns(session: Session, shown: Callable[[], str]) -> None:
    """Runs the snippets on sessions with a tool call that was made, and a message whose turn waits for a person."""
    for name, printed in {
        "ask": "AWAITING_APPROVAL  ",
        "whole_messages": " ['send_message']",
        "stream": '[send_message {"text":"Wait.","to":"Ada"}]',
    }.items():
        await snippet(name)(await session.fork())
        assert printed in shown()


def test_every_snippet_is_tried() -> None:
    names = {name for text in SNIPPETS for name in re.findall(r"^(?:async )?def (\w+)\(", text, flags=re.MULTILINE)}
    tried = set(re.findall(r'snippet\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert names == tried
    assert len(SNIPPETS) == len(names)
