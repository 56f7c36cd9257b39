"""Servers with the default settings, their database and their model; turns in the midst of something."""

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymongo import AsyncMongoClient

from tests import harness
from tests.chaos.takeovers.script import AGENTS, KINDS, SCRIPT
from tests.test_tools import ToolControl
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import approval_pb2
from turnkeeper.store.embedded import EmbeddedMongo

DATABASE = "takeovers"
START_TIME = 60.0
"""Seconds until all turns of a round are in the midst of something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A turn, and the number of the server that owns it."""

    kind: str
    label: str
    session: str
    turn: str
    server: int


class Server:
    """A server that can be started again."""

    def __init__(self, stage: "Stage", number: int) -> None:
        self._stage = stage
        self.number = number
        self._stack = contextlib.AsyncExitStack()
        self.process: harness.ServerProcess
        self.stubs: harness.Stubs

    async def start(self) -> None:
        """Starts it, in place of a process that was killed."""
        await self.stop()
        stage = self._stage
        program = harness.server_process(
            stage.uri,
            DATABASE,
            stage.model,
            flags=("--agents", str(stage.agents), "--replica", f"server-{self.number}", "--log-level", "ERROR"),
            variables=stage.tools.variables,
            short_times=False,
        )
        self.process = await self._stack.enter_async_context(program)
        self.stubs = await self._stack.enter_async_context(harness.connect(self.process.address))

    async def stop(self) -> None:
        """Kills it, if it runs."""
        await self._stack.aclose()

    def signal(self, number: signal.Signals) -> None:
        """Sends the process a signal."""
        os.kill(self.process.pid, number)


@dataclass(slots=True, kw_only=True)
class Stage:
    """Everything that a round needs. The first servers are struck; the others stay up and take over."""

    uri: str
    database: EmbeddedMongo
    model: ScriptedModel
    tools: ToolControl
    agents: Path
    client: AsyncMongoClient[dict[str, Any]]
    victims: Sequence[Server] = ()
    survivors: Sequence[Server] = ()
    _labels: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def stubs(self) -> harness.Stubs:
        """A connection to a server that is never struck."""
        return self.survivors[0].stubs

    async def begin(self, servers: Sequence[Server]) -> list[Begun]:
        """Begins a turn of each kind on each server. Returns them once each is in the midst of it, where it began."""
        turns = await asyncio.gather(*(self._begin(server, kind) for server in servers for kind in KINDS))
        async with asyncio.timeout(START_TIME):
            await asyncio.gather(*(self._in_the_midst(turn) for turn in turns))
        owners = await self.owners(turns)
        return [turn for turn in turns if owners[turn.session] == f"server-{turn.server}"]

    async def owners(self, turns: Sequence[Begun]) -> dict[str, str]:
        """Returns the owner of each turn's session."""
        heads = self.client[DATABASE]["heads"].find({"session_id": {"$in": [turn.session for turn in turns]}})
        return {head["session_id"]: head["owner"] async for head in heads}

    async def approval(self, approval_id: str) -> approval_pb2.Approval:
        """Returns an approval as it is now."""
        request = approval_pb2.GetApprovalRequest(approval_id=approval_id)
        return (await self.stubs.approvals.GetApproval(request)).approval

    async def _begin(self, server: Server, kind: str) -> Begun:
        label = f"{kind}-{next(self._labels)}"
        session = await harness.create_test_session(server.stubs, agent="worker")
        turn = await harness.send_message_to_session(server.stubs, session, f"{kind} {label}", wait=0)
        return Begun(kind=kind, label=label, session=session, turn=turn.turn_id, server=server.number)

    async def _in_the_midst(self, turn: Begun) -> None:
        if turn.kind == "tell":
            words = turn.label.encode()
            await self.model.exchanges.until(lambda all_: any(words in exchange.body for exchange in all_))
        else:
            await self.tools.started(turn.label)


@contextlib.asynccontextmanager
async def staged(folder: Path, *, victims: int, survivors: int) -> AsyncIterator[Stage]:
    """Starts everything; ends everything at the end of the block, frozen processes too."""
    tools, agents = ToolControl(folder), folder / "agents.toml"
    tools.install()
    agents.write_text(AGENTS, encoding="utf-8")
    database = EmbeddedMongo(folder / "database")
    async with contextlib.AsyncExitStack() as stack:
        uri = await stack.enter_async_context(database)
        model = await stack.enter_async_context(harness.scripted(SCRIPT))
        client = await stack.enter_async_context(AsyncMongoClient[dict[str, Any]](uri, readConcernLevel="majority"))
        stage = Stage(uri=uri, database=database, model=model, tools=tools, agents=agents, client=client)
        servers = [Server(stage, number) for number in range(victims + survivors)]
        stage.victims, stage.survivors = servers[:victims], servers[victims:]
        for server in servers:
            stack.push_async_callback(server.stop)
            await server.start()
        yield stage
