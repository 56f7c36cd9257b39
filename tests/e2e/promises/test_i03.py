"""I3: what was acknowledged is never lost, whatever is killed."""

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from grpc import aio
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.harness import Stubs
from tests.processes import alive, until
from turnkeeper.pb.v1 import chat_pb2, event_pb2, session_pb2
from turnkeeper.store.embedded import EmbeddedMongo

SCRIPT = """
[[reply]]
text = "You said: {user}"
"""
CLIENTS = 6
LIFETIME, ORPHANS = "transactionLifetimeLimitSeconds", 2
"""What a killed server was writing stays locked so many seconds: this test is about loss, not about time."""
ROUNDS = 2
"""How often the database is killed, and how often the server."""
MORE = 25
"""Acknowledgements between two kills."""


@dataclass(slots=True)
class Acknowledged:
    """The acknowledged messages and sessions, kept outside of the killed processes."""

    sessions: dict[str, str] = field(default_factory=dict)
    """Session id → title."""
    turns: list[tuple[str, str, int, str]] = field(default_factory=list)
    """Session, turn, number of its first event, text."""
    answers: dict[str, str] = field(default_factory=dict)
    """Turn → answer, where one was given."""

    @property
    def count(self) -> int:
        return len(self.sessions) + len(self.turns)


async def test_i3_nothing_that_was_acknowledged_is_missing(tmp_path: Path) -> None:
    """Without a second tenant: the tests themselves would write its sessions into a database that is killed."""
    acknowledged, address = Acknowledged(), _Address()
    database = EmbeddedMongo(tmp_path)
    async with (
        database as uri,
        _Killable(database.pid) as mongod,
        harness.scripted(SCRIPT) as model,
    ):
        async with AsyncMongoClient[dict[str, object]](uri) as admin:
            await admin.admin.command({"setParameter": 1, LIFETIME: ORPHANS})
        async with contextlib.AsyncExitStack() as servers, asyncio.TaskGroup() as group:
            clients = [group.create_task(_keep_talking(address, acknowledged, number)) for number in range(CLIENTS)]
            for _ in range(ROUNDS):
                server = await servers.enter_async_context(
                    harness.server_process(uri, "kept", model, flags=("--identity", "none"))
                )
                address.now = server.address
                await _more(acknowledged)
                await mongod.kill_and_restart()
                await _more(acknowledged)
                await server.kill()
            for client in clients:
                client.cancel()
        async with (
            harness.serving(uri, "kept", model, identity="none") as running,
            harness.connect(running.address) as stubs,
        ):
            await _all_there(stubs, acknowledged)
        await check(uri, "kept")


class _Address:
    """The server's current address."""

    now = ""


class _Killable:
    """A `mongod` that is killed with -9, and started again on its data and its port."""

    def __init__(self, pid: int | None) -> None:
        assert pid is not None
        self._pid = pid
        command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        self._command = [f"{LIFETIME}={ORPHANS}" if LIFETIME in word else word for word in command]
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            await self._process.wait()

    async def kill_and_restart(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        await until(lambda: not alive(self._pid))
        if self._process is not None:
            await self._process.wait()
        quiet = asyncio.subprocess.DEVNULL
        self._process = await asyncio.create_subprocess_exec(*self._command, stdout=quiet, stderr=quiet)
        self._pid = self._process.pid


async def _more(acknowledged: Acknowledged) -> None:
    """Waits until so many more messages are acknowledged."""
    enough = acknowledged.count + MORE
    await until(lambda: acknowledged.count >= enough, timeout=40)


async def _keep_talking(address: _Address, acknowledged: Acknowledged, number: int) -> None:
    """Runs a client: new sessions, messages to them, now and then an answer; a failed call is not acknowledged."""
    await until(lambda: bool(address.now), timeout=20)
    session, sent = "", 0
    while True:
        with contextlib.suppress(aio.AioRpcError):
            async with harness.connect(address.now) as stubs:
                while True:
                    sent += 1
                    if sent % 5 == 1:
                        session = await _create(stubs, acknowledged, f"client {number}, {sent}")
                    await _send(stubs, acknowledged, session, f"{number}, {sent}", wait=2.0 if sent % 3 == 0 else 0)
        await asyncio.sleep(0.02)


async def _create(stubs: Stubs, acknowledged: Acknowledged, title: str) -> str:
    response = await stubs.sessions.CreateSession(
        session_pb2.CreateSessionRequest(request_id=harness.new_request_id(), agent="assistant", title=title),
        timeout=3,
    )
    acknowledged.sessions[response.session.session_id] = title
    return response.session.session_id


async def _send(stubs: Stubs, acknowledged: Acknowledged, session: str, text: str, *, wait: float) -> None:
    request = chat_pb2.SendMessageRequest(
        session_id=session,
        request_id=harness.new_request_id(),
        content=harness.text_parts(text),
        if_busy=chat_pb2.IF_BUSY_ENQUEUE,
    )
    request.wait.FromMilliseconds(int(wait * 1000))
    response = await stubs.chat.SendMessage(request, timeout=4)
    acknowledged.turns.append((session, response.turn.turn_id, response.sequence, text))
    if response.turn.state == chat_pb2.TURN_STATE_COMPLETED:
        acknowledged.answers[response.turn.turn_id] = harness.answer_of(response.turn)


async def _all_there(stubs: Stubs, acknowledged: Acknowledged) -> None:
    """Asserts that each session, message and answer is stored as it was acknowledged, and that every turn ends."""
    logs: dict[str, list[event_pb2.Event]] = {}
    for session, title in acknowledged.sessions.items():
        got = await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
        assert got.session.title == title
    for session, turn_id, _, text in acknowledged.turns:
        turn = await harness.wait_for_turn(stubs, session, turn_id)
        assert (turn.state, harness.answer_of(turn)) == (chat_pb2.TURN_STATE_COMPLETED, f"You said: {text}")
        assert acknowledged.answers.get(turn_id, harness.answer_of(turn)) == harness.answer_of(turn)
    for session, turn_id, sequence, text in acknowledged.turns:
        logs[session] = logs.get(session) or await harness.all_events(stubs, session)
        event = logs[session][sequence - 1]
        assert event.turn_id == turn_id
        assert event.message_received.content[0].text == text
