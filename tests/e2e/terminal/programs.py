"""Runs commands of `turnkeeper` in this process, beside a server in another."""

import asyncio
import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from tests.pseudo_terminal import PseudoTerminal, terminal
from turnkeeper.command_line import main
from turnkeeper.pb.v1 import chat_pb2, message_pb2, session_pb2

SMALL, LARGE = (80, 24), (120, 45)
"""Columns and rows of a terminal."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    status: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        """The output as one JSON document."""
        return json.loads(self.output)

    @property
    def lines(self) -> list[Any]:
        """The output as JSON lines."""
        return [json.loads(line) for line in self.output.splitlines()]


@dataclass(slots=True)
class CommandLine:
    """The command line of one server's users. The server is another process: gRPC has one event loop in each."""

    address: str
    flags: tuple[str, ...] = ()
    turns: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __call__(self, *arguments: str, status: int = 0) -> Ended:
        """Runs a command whose output is no terminal, and checks its exit status."""
        output, errors = io.StringIO(), io.StringIO()
        async with self.turns:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                code = await asyncio.to_thread(main, [*arguments, "--address", self.address, *self.flags])
        ended = Ended(code, output.getvalue(), errors.getvalue())
        assert ended.status == status, ended
        assert "\x1b" not in ended.output + ended.errors
        return ended

    def on_terminal(
        self, *arguments: str, size: tuple[int, int] = SMALL, variables: Mapping[str, str] | None = None
    ) -> contextlib.AbstractAsyncContextManager[PseudoTerminal]:
        """Runs a command in a process of its own on a terminal with these columns and rows."""
        program = [sys.executable, "-m", "turnkeeper", *arguments, "--address", self.address, *self.flags]
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        columns, rows = size
        return terminal(program, env={**kept, **(variables or {})}, cwd=Path.cwd(), columns=columns, rows=rows)


def create(stubs: Any, agent: str) -> str:
    """Returns the id of a new session. `stubs` are those of blocking calls."""
    request = session_pb2.CreateSessionRequest(agent=agent, request_id=token_hex(8))
    return str(stubs.sessions.CreateSession(request, wait_for_ready=True, timeout=20).session.session_id)


async def send_in(stubs: Any, session: str, text: str) -> chat_pb2.Turn:
    """Sends a message, and returns its turn once it ends or waits."""
    message = chat_pb2.SendMessageRequest(
        session_id=session, request_id=token_hex(8), content=[message_pb2.Part(text=text)]
    )
    # Not in this thread: its event loop has the model.
    response: chat_pb2.SendMessageResponse = await asyncio.to_thread(
        stubs.chat.SendMessage, message, timeout=20, wait_for_ready=True
    )
    return response.turn


async def send(stubs: Any, agent: str, text: str) -> chat_pb2.Turn:
    """Sends a message in a new session, and returns its turn once it ends or waits."""
    return await send_in(stubs, create(stubs, agent), text)
