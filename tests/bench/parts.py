"""The parts of a run: a database, a model, servers, floors and the load generator, each a process of its own."""

import asyncio
import contextlib
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson

from tests.bench import runner
from tests.bench.figures import Invalid
from tests.bench.floors.serving import PORT
from tests.bench.pacing_model import READY
from tests.chaos.programs import REPOSITORY, Program
from tests.chaos.servers import environment
from tests.demo.program import children
from turnkeeper.store.embedded import EmbeddedMongo
from turnkeeper.supervision import supervisor
from turnkeeper.tools.samples import OUTBOX

FILES: Final = Path(__file__).parent
SERVING: Final = "serving on"
JOB_TIME: Final = 180.0
"""Seconds after which a job counts as hanging; no job needs as long."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server at host:port, the subject's or a floor's. `database` is the name of its database, if it has one."""

    program: Program
    address: str
    database: str = ""
    beside: tuple[Program, ...] = ()
    """Programs that share its port."""

    @property
    def pids(self) -> list[int]:
        """The server's processes, and those that they have started."""
        programs = [program.pid for program in (self.program, *self.beside)]
        return [*programs, *(child for pid in programs for child in children(pid))]


class Runner:
    """A process that runs the bench's jobs: the load generator, or a floor that is no server."""

    def __init__(self, program: Program, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.program = program
        self._reader = reader
        self._writer = writer

    @property
    def pids(self) -> list[int]:
        return [self.program.pid]

    async def run(self, job: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
        """Runs a job in that process and returns its result; one at a time. Raises Invalid if the job fails."""
        request = {"job": f"{job.__module__}:{job.__qualname__}", "arguments": arguments}
        self._writer.write(orjson.dumps(request) + b"\n")
        await self._writer.drain()
        try:
            async with asyncio.timeout(JOB_TIME):
                line = await self._reader.readline()
        except TimeoutError:
            raise Invalid(f"{job.__name__} took more than {JOB_TIME:.0f} s") from None
        if not line:
            raise Invalid(f"{self.program.name} ended; its output:\n{self.program.output()[-2000:]}")
        answer = orjson.loads(line)
        if "error" in answer:
            raise Invalid(f"{job.__name__}: {answer['error']}")
        return answer["result"]


class Parts:
    """Every process that a run starts. Leaving the block stops them all, also after an error."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._shared: dict[tuple[object, ...], Served] = {}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnkeeper-bench-")))
            self.database = EmbeddedMongo(self.folder / "database")
            await stack.enter_async_context(self.database)
            self._stack = stack
            self.model = await self._model(stack)
            self.load = await stack.enter_async_context(self.runner("load"))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def database_pids(self) -> list[int]:
        assert self.database.pid is not None
        return [self.database.pid]

    async def subject(self) -> Served:
        """Returns `turnkeeper serve` with its defaults; every caller gets the same server."""
        if ("subject",) not in self._shared:
            self._shared["subject",] = await self._stack.enter_async_context(self.server("subject"))
        return self._shared["subject",]

    async def floor(self, name: str, *arguments: object, python: str = sys.executable, model_url: str = "") -> Served:
        """Starts tests/bench/floors/`name`.py with the model's address and these arguments. The same arguments get the
        same server.

        `model_url`: another model than the scripted one. `python`: an interpreter without the project's packages; it
        can import the service's own source.
        """
        key = (name, model_url, *arguments)
        if key not in self._shared:
            words = [f"tests.bench.floors.{name}", model_url or self.model_url, *map(str, arguments)]
            label = f"{name}-{len(self._shared)}"
            program = await self._stack.enter_async_context(
                self._program(label, words, python=python, PYTHONPATH=str(REPOSITORY / "service"))
            )
            self._shared[key] = Served(program, await _address(program))
        return self._shared[key]

    @contextlib.asynccontextmanager
    async def floor_of(self, processes: int, name: str) -> AsyncIterator[Served]:
        """Starts a floor of several processes on one port, for this block alone."""
        async with AsyncExitStack() as stack:
            variables = {PORT: str(stack.enter_context(supervisor.hold_port("127.0.0.1", 0)))}
            words = [f"tests.bench.floors.{name}", self.model_url]
            labels = [f"{name}-of-{processes}-{number}" for number in range(processes)]
            programs = [await stack.enter_async_context(self._program(label, words, **variables)) for label in labels]
            addresses = [await _address(program) for program in programs]
            yield Served(programs[0], addresses[0], beside=tuple(programs[1:]))

    @contextlib.asynccontextmanager
    async def server(
        self, name: str, *flags: str, module: str = "turnkeeper", database: str = "turnkeeper", **variables: str
    ) -> AsyncIterator[Served]:
        """Starts a server for this block alone. `module` is run instead of `turnkeeper`; `variables` are added to its
        environment.
        """
        command = [module, "serve", "--port", "0", "--agents", str(FILES / "agents.toml"), "--database", database]
        ours = {
            "MONGODB_URI": self.database.uri,
            "OPENAI_BASE_URL": self.model_url,
            "OPENAI_API_KEY": "none",
            OUTBOX: str(self.folder / "outbox"),
        }
        async with self._program(name, [*command, *flags], **{**ours, **variables}) as program:
            yield Served(program, await _address(program), database)

    @contextlib.asynccontextmanager
    async def runner(self, name: str) -> AsyncIterator[Runner]:
        """Starts a process for jobs, for this block alone."""
        socket = f"{name}-{secrets.token_hex(8)}"
        async with self._program(name, ["tests.bench.runner", socket]) as program:
            await program.until_line(runner.READY)
            reader, writer = await asyncio.open_unix_connection(runner.address_of(socket), limit=runner.LINE_LIMIT)
            try:
                yield Runner(program, reader, writer)
            finally:
                writer.close()

    async def pacing_model(self) -> Served:
        """Returns the model that keeps its time; every caller gets the same one. Its address is its base URL."""
        if ("pacing",) not in self._shared:
            program = await self._stack.enter_async_context(self._program("pacing", ["tests.bench.pacing_model"]))
            self._shared["pacing",] = Served(program, (await program.until_line(READY)).rsplit(" ", 1)[1])
        return self._shared["pacing",]

    @property
    def model_url(self) -> str:
        """The base URL of the model, as an OpenAI client takes it."""
        return self.model.address

    async def _model(self, stack: AsyncExitStack) -> Served:
        script = FILES / "model.toml"
        words = ["turnkeeper", "model", "scripted", "--script", str(script)]
        program = await stack.enter_async_context(self._program("model", words))
        return Served(program, (await program.until_line("scripted model:")).rsplit(" ", 1)[1])

    @contextlib.asynccontextmanager
    async def _program(
        self, name: str, words: list[str], *, python: str = sys.executable, **variables: str
    ) -> AsyncIterator[Program]:
        command = [python, "-m", *words]
        program = Program(name, command, log=self.folder / f"{name}.log", environ=environment(**variables))
        program.start()
        try:
            yield program
        finally:
            await program.kill_if_running()


def cancel_on_signals() -> None:
    """Lets SIGTERM and SIGHUP cancel the current task, as Ctrl-C does, so that every process is stopped."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _address(program: Program) -> str:
    return (await program.until_line(SERVING)).rsplit(" ", 1)[1]
