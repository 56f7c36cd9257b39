"""What a run is made of: a database, a model, servers, floors and the load generator, each a process of its own."""

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
from tests.chaos.programs import REPOSITORY, Program
from tests.chaos.servers import environment
from tests.demo.program import children
from turnkeeper.store.embedded import EmbeddedMongo
from turnkeeper.supervision import supervisor
from turnkeeper.tools.samples import OUTBOX

FILES: Final = Path(__file__).parent
SERVING: Final = "serving on"
JOB_TIME: Final = 180.0
"""What no job needs: one that takes longer hangs."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server of somebody's, at host:port. `database` is the name of its database, if it has one."""

    program: Program
    address: str
    database: str = ""
    beside: tuple[Program, ...] = ()
    """Programs that share its port."""

    @property
    def pids(self) -> list[int]:
        """Its processes, and those that they have started."""
        programs = [each.pid for each in (self.program, *self.beside)]
        return [*programs, *(child for pid in programs for child in children(pid))]


class Runner:
    """A process that runs jobs of ours: the load generator, or a floor that is no server."""

    def __init__(self, program: Program, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.program = program
        self._reader = reader
        self._writer = writer

    @property
    def pids(self) -> list[int]:
        return [self.program.pid]

    async def run(self, job: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
        """What the job gives, in that process. One at a time. Raises Invalid with its reason when it fails."""
        asked = {"job": f"{job.__module__}:{job.__qualname__}", "arguments": arguments}
        self._writer.write(orjson.dumps(asked) + b"\n")
        await self._writer.drain()
        try:
            async with asyncio.timeout(JOB_TIME):
                line = await self._reader.readline()
        except TimeoutError:
            raise Invalid(f"{job.__name__} took more than {JOB_TIME:.0f} s") from None
        if not line:
            raise Invalid(f"{self.program.name} ended; it said:\n{self.program.said()[-2000:]}")
        answer = orjson.loads(line)
        if "error" in answer:
            raise Invalid(f"{job.__name__}: {answer['error']}")
        return answer["result"]


class Parts:
    """Everything that a run starts. Leaving the block ends it all, in any case."""

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
        """`turnkeeper serve` with its defaults, shared by all who ask."""
        if ("subject",) not in self._shared:
            self._shared["subject",] = await self._stack.enter_async_context(self.server("subject"))
        return self._shared["subject",]

    async def floor(self, name: str, *arguments: object, python: str = sys.executable) -> Served:
        """tests/bench/floors/`name`.py with the model's address and these arguments, shared by all who ask alike.

        `python`: an interpreter that has not our packages; the service's own source it can import.
        """
        key = (name, *arguments)
        if key not in self._shared:
            words = [f"tests.bench.floors.{name}", self.model_url, *map(str, arguments)]
            label = f"{name}-{len(self._shared)}"
            program = await self._stack.enter_async_context(
                self._program(label, words, python=python, PYTHONPATH=str(REPOSITORY / "service"))
            )
            self._shared[key] = Served(program, await _address(program))
        return self._shared[key]

    @contextlib.asynccontextmanager
    async def floor_of(self, processes: int, name: str) -> AsyncIterator[Served]:
        """A floor of so many processes on one port, of one's own."""
        async with AsyncExitStack() as stack:
            variables = {PORT: str(stack.enter_context(supervisor.hold_port("127.0.0.1", 0)))}
            words = [f"tests.bench.floors.{name}", self.model_url]
            labels = [f"{name}-of-{processes}-{number}" for number in range(processes)]
            programs = [await stack.enter_async_context(self._program(label, words, **variables)) for label in labels]
            addresses = [await _address(each) for each in programs]
            yield Served(programs[0], addresses[0], beside=tuple(programs[1:]))

    @contextlib.asynccontextmanager
    async def server(
        self, name: str, *flags: str, module: str = "turnkeeper", database: str = "turnkeeper", **variables: str
    ) -> AsyncIterator[Served]:
        """A server of one's own. `module`: what is run in the place of `turnkeeper`. Variables are on top."""
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
        """A process of one's own for jobs."""
        socket = f"{name}-{secrets.token_hex(8)}"
        async with self._program(name, ["tests.bench.runner", socket]) as program:
            await program.until_says(runner.READY)
            reader, writer = await asyncio.open_unix_connection(runner.address_of(socket), limit=runner.LINE_LIMIT)
            try:
                yield Runner(program, reader, writer)
            finally:
                writer.close()

    @property
    def model_url(self) -> str:
        """What an OpenAI client needs."""
        return self.model.address

    async def _model(self, stack: AsyncExitStack) -> Served:
        script = FILES / "model.toml"
        words = ["turnkeeper", "model", "scripted", "--script", str(script)]
        program = await stack.enter_async_context(self._program("model", words))
        return Served(program, (await program.until_says("scripted model:")).rsplit(" ", 1)[1])

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


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP cancel the current task, as Ctrl-C does, so that everything is ended."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _address(program: Program) -> str:
    return (await program.until_says(SERVING)).rsplit(" ", 1)[1]
