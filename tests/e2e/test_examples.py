"""The programs of examples/ and the guide's support desk, on `turnkeeper dev`."""

import asyncio
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from tests.demo.ports import free_port
from tests.processes import until
from tests.unit.docs.pages import DOCS, ROOT, blocks
from turnkeeper_client import Client
from turnkeeper_client.pb.v1.approval_pb2 import Approval

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(150)]
EXAMPLES = ROOT / "examples"
PAGE = (DOCS / "guide/support-desk.md").read_text(encoding="utf-8")
SIGNING_SECRET = "a-signing-secret"


@asynccontextmanager
async def running(*command: str, cwd: Path, until_line: bytes, **variables: str) -> AsyncIterator[None]:
    """Runs a program until the end of the block, which begins when it has printed a line with this text."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={"PATH": path, "HOME": str(cwd), "PYTHONUNBUFFERED": "1", **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    printed = b""
    try:
        async with asyncio.timeout(100):
            async for line in process.stdout:
                printed += line
                if until_line in line:
                    break
            else:
                raise AssertionError(printed.decode())
        reading = asyncio.create_task(process.stdout.read())
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
    await reading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns an empty folder with the two files of the guide's page."""
    folder = tmp_path_factory.mktemp("empty")
    (tools,) = blocks(PAGE, "python")
    (agents,) = blocks(PAGE, "toml")
    (folder / "desk.py").write_text(tools)
    (folder / "desk.toml").write_text(agents)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(folder: Path, mongo_uri: str) -> AsyncIterator[str]:
    """Starts the server by the page's own command."""
    command = next(block for block in blocks(PAGE, "sh") if "turnkeeper dev" in block).split()
    port = free_port()
    database = {"MONGODB_URI": mongo_uri, "TURNKEEPER_DATABASE": f"turnkeeper_test_{secrets.token_hex(6)}"}
    async with running(*command, "--port", str(port), cwd=folder, until_line=b"turnkeeper sessions", **database):
        yield f"127.0.0.1:{port}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(address: str) -> AsyncIterator[Client]:
    async with Client(address) as client:
        yield client


async def waiting(client: Client) -> Approval:
    session = await client.sessions.create("desk")
    turn = await session.send("refund A-17 1990")
    return await client.approvals.get(turn.pending[0].approval_id)


async def answer(client: Client, approval: Approval) -> str:
    ended = await client.session(approval.session_id).turn(approval.turn_id, wait=20)
    return ended.answer[0].text


async def test_the_support_desk_has_fewer_than_40_lines_and_asks_before_it_pays(client: Client, folder: Path) -> None:
    for name in ("desk.py", "desk.toml"):
        assert (EXAMPLES / "support-desk" / name).read_text() == (folder / name).read_text()
    assert sum(len((folder / name).read_text().splitlines()) for name in ("desk.py", "desk.toml")) < 40
    session = await client.sessions.create("desk")
    assert re.findall(r"type `([^`]+)`, then `([^`]+)`", PAGE) == [("find_order A-17", "refund A-17 1990")]
    assert (await session.send("find_order A-17")).answer[0].text == "The tool answered: packed"
    turn = await session.send("refund A-17 1990")
    approval = await client.approvals.get(turn.pending[0].approval_id)
    await client.approvals.approve(approval)
    assert await answer(client, approval) == "The tool answered: 19.90 were paid back for order A-17."


async def test_the_approver_of_twelve_lines(client: Client, address: str) -> None:
    code = (EXAMPLES / "approver.py").read_text()
    assert len([line for line in code.splitlines() if line]) <= 12

    async def approver(typed: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(EXAMPLES / "approver.py"), address),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await asyncio.wait_for(process.communicate(typed.encode()), 30)
        assert process.returncode == 0, printed.decode()
        return printed.decode()

    approval = await waiting(client)
    assert 'default asks for refund {"cents":1990,"number":"A-17"}' in await approver("y\n")
    assert "19.90 were paid back" in await answer(client, approval)
    approval = await waiting(client)
    await approver("n\nToo much.\n")
    assert "Too much." in await answer(client, approval)


async def test_the_approver_of_the_guide(client: Client, address: str) -> None:
    """It decides what waits when it starts, and what comes."""
    guide = (EXAMPLES.parent / "docs/guide/approvals.md").read_text()
    (code,) = re.findall(r"```py\n(from turnkeeper_client.sync import Client\n.*?)```", guide, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 15
    first = await waiting(client)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-c", code.replace("127.0.0.1:50051", address)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    printed = ""

    async def until(words: str) -> None:
        nonlocal printed
        async with asyncio.timeout(30):
            while words not in printed:
                printed += (await process.stdout.read(1024)).decode()  # type: ignore[union-attr]
        printed = printed.partition(words)[2]

    try:
        await until('default asks for refund {"cents":1990,"number":"A-17"}')
        await until("May it run?")
        process.stdin.write(b"y\n")
        await until("refund is decided")
        assert "19.90 were paid back" in await answer(client, first)
        second = await waiting(client)
        await until("May it run?")
        process.stdin.write(b"n\nToo much.\n")
        await until("refund is decided")
        assert "Too much." in await answer(client, second)
    finally:
        process.kill()
        await process.wait()


def events_of(text: str) -> list[tuple[str, Any]]:
    return [(name, json.loads(data)) for name, data in re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)]


async def test_the_bridge_for_browsers(client: Client, address: str) -> None:
    port = free_port()
    command = (sys.executable, "-m", "uvicorn", "fastapi_bridge:app", "--port", str(port), "--app-dir", str(EXAMPLES))
    async with (
        running(*command, cwd=EXAMPLES, until_line=b"Uvicorn running", TURNKEEPER_CLIENT_ADDRESS=address),
        ClientSession(f"http://127.0.0.1:{port}") as browser,
    ):
        async with browser.post("/sessions", json={"agent": "desk"}) as response:
            session_id = (await response.json())["session_id"]
        path = f"/sessions/{session_id}/messages"

        async def send(text: str, request_id: str) -> list[tuple[str, Any]]:
            async with browser.post(path, json={"text": text, "request_id": request_id}) as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                return events_of(await response.text())

        events = await send("find_order A-17", "1")
        text = "".join(data["text"] for name, data in events if name == "text")
        assert (text, events[-1][1]["state"]) == ("The tool answered: packed", "TURN_STATE_COMPLETED")
        _, turn = (await send("refund A-17 1990", "2"))[-1]
        (asks,) = turn["approvals"]
        assert (asks["tool"], asks["arguments_json"]) == ("refund", '{"cents":1990,"number":"A-17"}')
        decision = {"approve": True, "arguments_hash": "of-other-arguments"}
        async with browser.post(f"/approvals/{asks['approval_id']}", json=decision) as response:
            assert response.status == 409
        decision["arguments_hash"] = asks["arguments_hash"]
        async with browser.post(f"/approvals/{asks['approval_id']}", json=decision) as response:
            assert response.status == 200
        events = await send("refund A-17 1990", "2")
        assert "19.90 were paid back" in "".join(data["text"] for name, data in events if name == "text")
        assert len([turn async for turn in client.session(session_id).turns()]) == 2, "the repeat sent nothing twice"
        async with browser.post("/sessions", json={"agent": "unknown"}) as response:
            assert (response.status, "AGENT_NOT_FOUND" in await response.text()) == (404, True)


async def test_the_approver_in_slack(client: Client, address: str) -> None:
    posted: list[Mapping[str, Any]] = []
    replaced: list[str] = []

    async def post_message(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer a-bot-token"
        posted.append(await request.json())
        return web.json_response({"ok": True})

    async def response_url(request: web.Request) -> web.Response:
        replaced.append((await request.json())["text"])
        return web.Response()

    stub = web.Application()
    stub.router.add_post("/api/chat.postMessage", post_message)
    stub.router.add_post("/response", response_url)
    approval = await waiting(client)
    port = free_port()
    async with TestServer(stub) as slack, ClientSession() as presses:
        variables = {
            "TURNKEEPER_CLIENT_ADDRESS": address,
            "SLACK_URL": str(slack.make_url("/api")),
            "SLACK_TOKEN": "a-bot-token",
            "SLACK_SIGNING_SECRET": SIGNING_SECRET,
            "SLACK_CHANNEL": "C1",
            "PORT": str(port),
        }
        command = (sys.executable, str(EXAMPLES / "slack_approver.py"))
        async with running(*command, cwd=EXAMPLES, until_line=b"asks in C1", **variables):
            await until(lambda: any(approval.approval_id in json.dumps(message) for message in posted), timeout=30)
            message = next(message for message in posted if approval.approval_id in json.dumps(message))
            assert "A-17" in message["blocks"][0]["text"]["text"]
            approve, _ = message["blocks"][1]["elements"]

            actions = f"http://127.0.0.1:{port}/slack/actions"

            async def press(secret: str) -> int:
                url = str(slack.make_url("/response"))
                payload = {"actions": [approve], "user": {"username": "ada"}, "response_url": url}
                body = f"payload={json.dumps(payload)}".encode()
                sent = str(int(time.time()))
                signed = hmac.new(secret.encode(), b"v0:" + sent.encode() + b":" + body, hashlib.sha256).hexdigest()
                headers = {
                    "Content-Type": "application/x-www-form-urlencoded",
                    "X-Slack-Request-Timestamp": sent,
                    "X-Slack-Signature": f"v0={signed}",
                }
                async with presses.post(actions, data=body, headers=headers) as answered:
                    return answered.status

            assert await press("another-secret") == 401
            assert (await client.approvals.get(approval.approval_id)).state == approval.state
            assert await press(SIGNING_SECRET) == 200
            assert "19.90 were paid back" in await answer(client, approval)
            assert replaced == ["`refund`: approve by ada"]
            assert (await client.approvals.get(approval.approval_id)).reason == "ada, in Slack"
