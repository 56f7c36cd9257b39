"""Starts the cluster: database, model, servers, and the wire between them. Leaving the block stops them all."""

import asyncio
import contextlib
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pymongo.errors import PyMongoError

from tests.chaos import clock as clocks
from tests.chaos.clock import Clock
from tests.chaos.database import Client, Node, ReplicaSet
from tests.chaos.programs import Program
from tests.chaos.proxy import Wire
from tests.chaos.servers import Server, environment
from tests.chaos.services.running import Services, serving
from turnkeeper.settings import Settings

DATABASE: Final = "chaos"
LEASE: Final = Settings().lease.total_seconds()
"""Seconds: the service's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The parts to start. Times are in seconds; `logs` is the folder of the programs' output.

    `services`: the folder of what the tool servers write down; None is a cluster without tool servers.
    """

    logs: Path
    agents: Path
    script: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    servers: int = 3
    nodes: int = 3
    lease: float = LEASE
    clocks: bool = True
    flags: Sequence[str] = ()
    services: Path | None = None


@dataclass(slots=True, kw_only=True)
class Cluster:
    """The running parts."""

    plan: Plan
    wire: Wire
    database: ReplicaSet
    servers: list[Server]
    model_url: str
    client: Client
    services: Services | None = None

    @property
    def addresses(self) -> list[str]:
        """The servers' addresses for clients, through the proxy."""
        return [server.link.address for server in self.servers]

    @property
    def living(self) -> list[Server]:
        return [server for server in self.servers if server.answers]

    async def turns_owned(self) -> Mapping[str, int]:
        """Returns the number of leased turns by server. Returns nothing if the database does not answer."""
        owned: list[dict[str, Any]] = [
            {"$match": {"lease_until": {"$ne": None}, "owner": {"$gt": ""}}},
            {"$group": {"_id": "$owner", "turns": {"$sum": 1}}},
        ]
        try:
            groups = await (await self.client[DATABASE].heads.aggregate(owned)).to_list()
        except PyMongoError:
            return {}
        return {group["_id"]: group["turns"] for group in groups}

    async def busiest(self, rng: random.Random) -> Server:
        """Returns the running server that owns most turns, or any if none does. Raises IndexError without a server."""
        owned = await self.turns_owned()
        living = self.living
        rng.shuffle(living)
        return sorted(living, key=lambda server: -owned.get(server.name, 0))[0]

    async def states(self) -> Mapping[str, int]:
        """Returns the number of turns by state. Raises PyMongoError."""
        by_state = [{"$group": {"_id": "$state", "turns": {"$sum": 1}}}]
        groups = await (await self.client[DATABASE].turns.aggregate(by_state)).to_list()
        return {group["_id"]: group["turns"] for group in groups}

    async def heal(self) -> None:
        """Undoes every fault: all programs run, and all are connected."""
        await self.database.heal()
        await self.heal_tools()
        await self.heal_servers()

    async def heal_tools(self) -> None:
        """Starts every tool server that is down."""
        if self.services is not None:
            await self.services.heal()

    async def heal_servers(self) -> None:
        """Starts every server that is down, and sets its clock right."""
        for server in self.servers:
            server.clock.set(0)
            server.thaw()
        await asyncio.gather(*(server.start() for server in self.servers if not server.program.running))


@contextlib.asynccontextmanager
async def running(plan: Plan) -> AsyncIterator[Cluster]:
    """Starts the parts of the plan, and kills them at the end. Raises NoFaketime if clocks need libfaketime."""
    preload = clocks.library() if plan.clocks else None
    plan.logs.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnkeeper-chaos-")))
        wire = stack.enter_context(Wire())
        nodes = []
        for number in range(plan.nodes):
            name = f"mongo-{number}"
            clock = Clock(folder / f"{name}.clock", preload=preload)
            nodes.append(Node(name, folder, wire.link(name, identify=True), clock, wire=wire, log=plan.logs))
        database = ReplicaSet(nodes)
        stack.push_async_callback(database.close)
        await database.start()
        model_url = await _model(plan, stack)
        services = None
        if plan.services is not None:
            services = await stack.enter_async_context(serving(plan.services, wire))
        servers = []
        for number in range(plan.servers):
            name = f"server-{number}"
            clock = Clock(folder / f"{name}.clock", preload=preload)
            server = Server(
                name,
                folder,
                wire.link(name),
                clock,
                wire=wire,
                log=plan.logs / f"{name}.log",
                flags=[*_flags(plan), *(services.flags if services is not None else ())],
                variables=_variables(plan, database.uri, model_url),
            )
            servers.append(server)
            stack.push_async_callback(_kill, server)
        await asyncio.gather(*(server.start() for server in servers))
        client = await stack.enter_async_context(
            Client(
                database.uri,
                readConcernLevel="majority",
                timeoutMS=2_000,
                serverSelectionTimeoutMS=1_000,
                heartbeatFrequencyMS=500,
            )
        )
        yield Cluster(
            plan=plan,
            wire=wire,
            database=database,
            servers=servers,
            model_url=model_url,
            client=client,
            services=services,
        )


async def _model(plan: Plan, stack: contextlib.AsyncExitStack) -> str:
    script = ("--script", str(plan.script)) if plan.script else ()
    command = [sys.executable, "-m", "turnkeeper", "model", "scripted", *script]
    model = Program("model", command, log=plan.logs / "model.log", environ=environment())
    stack.push_async_callback(model.kill_if_running)
    model.start()
    return (await model.until_line("scripted model:")).rpartition(" ")[2].strip()


def _flags(plan: Plan) -> list[str]:
    times = {"lease": f"{plan.lease:g}s", "sweep": "1s", "poll": "500ms", "drain-delay": "500ms", "drain-grace": "10s"}
    given = [word for name, value in times.items() for word in (f"--{name}", value)]
    return [*given, "--database", DATABASE, "--agents", str(plan.agents), "--log-format", "json", *plan.flags]


def _variables(plan: Plan, uri: str, model_url: str) -> dict[str, str]:
    return environment(TURNKEEPER_MONGODB_URI=uri, OPENAI_BASE_URL=model_url, OPENAI_API_KEY="unused", **plan.variables)


async def _kill(server: Server) -> None:
    if server.program.running:
        await server.kill()
