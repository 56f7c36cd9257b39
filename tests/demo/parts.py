"""The demo's parts: a database, a server with its local model, a scripted model; all of them end with the demo."""

import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.demo import agents
from tests.demo.breaks import Break
from tests.demo.program import Server, announced, children, end_process, ends_with_us, environment, tail
from tests.demo.report import BrokenPromise
from tests.processes import alive, until
from turnkeeper.model.script_file import load_script
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.store.embedded import EmbeddedMongo
from turnkeeper_client import Client

LEASE = 5
"""Seconds that a turn belongs to its server without a renewal; 30 in production."""
SCRIPT = Path(__file__).with_name("tour.toml")


class Parts:
    """The parts of the demo. Leaving the block stops them all, also after an error."""

    def __init__(self, broken: frozenset[Break]) -> None:
        self.broken = broken
        self.servers: list[Server] = []
        self.pids: set[int] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="turnkeeper-demo-")))
            self.database = EmbeddedMongo(self.folder / "database")
            await self._stack.enter_async_context(self.database)
            self.pids.add(self.database.pid or 0)
            self.scripted = await self._stack.enter_async_context(ScriptedModel(load_script(SCRIPT)))
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def server(self) -> Server:
        """The server that was started last."""
        return self.servers[-1]

    def client(self) -> Client:
        """Returns a client with a connection of its own."""
        return Client(self.server.address)

    async def start_server(self, *, port: int = 0) -> Server:
        """Starts a server process; port 0 takes a free one. Raises BrokenPromise, with the end of its log."""
        file = self.folder / "agents.toml"
        file.write_text(agents.demo(scripted=self.scripted.base_url, needs_approval=Break.APPROVAL not in self.broken))
        log = self.folder / f"server-{len(self.servers) + 1}.log"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *ends_with_us(),
                *(sys.executable, "-m", "turnkeeper", "serve", "--port", str(port), "--lease", f"{LEASE}s"),
                *("--agents", str(file), "--local-model", "--drain-delay", "0s", "--drain-grace", "5s"),
                env=environment(
                    TURNKEEPER_MONGODB_URI=self.database.uri, TURNKEEPER_SAMPLE_OUTBOX=str(self.folder / "outbox.jsonl")
                ),
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C ends the demo, which then ends the server
            )
        self._stack.push_async_callback(end_process, process)
        self.pids.add(process.pid)
        address = await announced(process)
        if not address:
            raise BrokenPromise(f"the server did not start; the end of its log:\n{tail(log)}")
        self.pids |= children(process.pid)
        self.servers.append(Server(process, address, log))
        return self.server

    def outbox(self, to: str) -> list[dict[str, Any]]:
        """Returns the messages that the tool `send_message` appended to its file for this recipient."""
        file = self.folder / "outbox.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [sent for line in lines if (sent := json.loads(line))["to"] == to]

    async def stop(self) -> None:
        """Stops every part. Repeating it changes nothing."""
        await self._stack.aclose()

    async def leftovers(self) -> list[int]:
        """Waits for the processes to end, for 10 s at most. Returns those that still run."""
        deadline = time.monotonic() + 10
        await until(lambda: not self._running() or time.monotonic() > deadline, timeout=15)
        return self._running()

    def _running(self) -> list[int]:
        return sorted(pid for pid in self.pids if alive(pid))
