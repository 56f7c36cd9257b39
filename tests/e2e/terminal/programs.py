"""Runs commands of `turnkeeper` beside a server: in this process, or in their own on a pseudo-terminal."""

import asyncio
import contextlib
import io
import json
from dataclasses import dataclass, field
from typing import Any

from turnkeeper.command_line import main


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
