"""The sources that the suite of tool sources runs on: each offers the tools of `suite_tools`."""

import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import mcp_types as types

from tests.builders import AGENT, a_call, a_session_key
from tests.contracts import suite_tools
from tests.mcp_servers import sdk_http
from tests.mcp_servers import sources as mcp_servers
from tests.mcp_servers.suite_server import listed, suite_server
from tests.tool_servers.served import connected, served
from tests.tool_servers.suite import offer, suite_service
from tests.unit.telemetry.calls import Meters, Traces
from turnkeeper.domain.message import ToolRequest
from turnkeeper.domain.tool import CallState, ToolOutcome, ToolSpec
from turnkeeper.domain.turn import ToolCaller
from turnkeeper.engine.execution.call_progress import WatchedProgress
from turnkeeper.engine.execution.tool_runner import ToolRunner
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.tools.catalogue import parse
from turnkeeper.tools.mcp.source import McpTools
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.toolbox import Finished, Toolbox

AGENT_OF_SUITE: Final = replace(AGENT, tools=("*",))
STDIO_SERVER: Final = Path(mcp_servers.__file__).with_name("suite_stdio.py")
TIME: Final = timedelta(seconds=20)
"""Longer than any call of the suite takes, but those that wait for their end."""


async def held() -> None:
    """The lease of a test is always held."""


@dataclass(kw_only=True)
class SuiteTools:
    """A source of the suite's tools, and the toolbox that has it."""

    toolbox: Toolbox
    change: Callable[[], Awaitable[None]]
    """Makes `echo` another tool, as CHANGED has it, and returns once the source lists it."""
    prefix: str = ""
    """Stands before the names of the tools."""
    late: frozenset[ToolOutcome] = frozenset({ToolOutcome.TIMED_OUT, ToolOutcome.FAILED})
    """How a call ends whose time is over; a source may end it a moment before."""
    feed: Feed = field(default_factory=Feed)
    """Has how far the calls are."""
    runner: ToolRunner = field(init=False)

    def __post_init__(self) -> None:
        self.runner = ToolRunner(
            self.toolbox,
            caller=ToolCaller("clerk", "ada"),
            spans=Traces().spans,
            metrics=Meters().metrics,
            detached=set(),
            hold=held,
            progress=WatchedProgress(self.feed),
        )

    def spec(self, tool: str) -> ToolSpec:
        """Returns a tool as it is offered."""
        (spec,) = (spec for spec in self.toolbox.offered(AGENT_OF_SUITE) if spec.name == self.prefix + tool)
        return spec

    def problem(self, tool: str, arguments_json: str) -> str | None:
        """Returns why a call is not let through, as the model reads it; None if there is no such tool."""
        request = ToolRequest(tool_call_id="call", tool=self.prefix + tool, arguments_json=arguments_json)
        (checked,) = self.toolbox.checked([request], AGENT_OF_SUITE)
        return None if checked.spec is None else checked.problem

    async def call(self, tool: str, *, timeout: timedelta = TIME, **arguments: Any) -> tuple[ToolOutcome, Any]:
        """Calls a tool; returns the outcome, and the result as a value."""
        finished = await self.started(tool, timeout=timeout, **arguments)
        return finished.result.outcome, json.loads(finished.result.result_json)

    async def cancel(self) -> None:
        """Cancels the calls that run."""
        await self.runner.stop()

    async def started(self, tool: str, *, timeout: timedelta = TIME, **arguments: Any) -> Finished:
        """Calls a tool to its end."""
        call = a_call(
            a_session_key(),
            tool=self.prefix + tool,
            arguments_json=json.dumps(arguments),
            tool_class=self.spec(tool).tool_class,
            state=CallState.STARTED,
            started=True,
            source=self.spec(tool).source,
            attempt=1,
            start_time=datetime.now(UTC),
        )
        self.runner.start(call, timeout=timeout)
        (task,) = (run.outcome for run in self.runner._runs.values() if run.call is call)  # noqa: SLF001
        return await task


Source = Callable[[], AbstractAsyncContextManager[SuiteTools]]
"""Starts a source of the suite's tools, and ends it."""


@contextlib.asynccontextmanager
async def python_tools() -> AsyncIterator[SuiteTools]:
    """Functions of this process."""
    source = PythonTools(suite_tools.TOOLS)

    async def change() -> None:
        source.replace(suite_tools.CHANGED)

    yield SuiteTools(toolbox=Toolbox([source]), change=change)


def write_list(folder: Path, tools: PythonTools) -> None:
    """Writes what the program lists that has this folder."""
    write_tools(folder, listed(tools))


def write_tools(folder: Path, tools: Iterable[types.Tool]) -> None:
    """Does the same with tools as the protocol lists them."""
    described = [tool.model_dump(by_alias=True, exclude_none=True) for tool in tools]
    (folder / "tools.json").write_text(json.dumps(described))


@contextlib.asynccontextmanager
async def mcp_stdio_tools() -> AsyncIterator[SuiteTools]:
    """An MCP server that is a process."""
    with tempfile.TemporaryDirectory(prefix="turnkeeper-tests-") as folder:
        write_list(Path(folder), PythonTools(suite_tools.TOOLS))
        command = (sys.executable, "-I", "-S", str(STDIO_SERVER), folder)
        async with mcp_servers.running(mcp_servers.program("suite", *command)) as source:
            await source.refresh()
            yield _mcp_tools(source, lambda: write_list(Path(folder), PythonTools(suite_tools.CHANGED)))


@contextlib.asynccontextmanager
async def mcp_http_tools() -> AsyncIterator[SuiteTools]:
    """An MCP server over HTTP."""
    present = [PythonTools(suite_tools.TOOLS)]
    app = suite_server(lambda: present[-1]).streamable_http_app()
    async with (
        sdk_http.serving(app) as url,
        mcp_servers.running(replace(mcp_servers.at(url), name="suite")) as source,
    ):
        await source.refresh()
        yield _mcp_tools(source, lambda: present.append(PythonTools(suite_tools.CHANGED)))


def _mcp_tools(source: McpTools, offer_changed: Callable[[], None]) -> SuiteTools:
    """Returns the tools of an MCP server, which the catalogue states to be READ_ONLY."""
    stated = b'[[server]]\nname = "suite"\nmcp = "stdio"\n[[tool]]\ntool = "suite__*"\nclass = "read_only"\n'

    async def change() -> None:
        offer_changed()
        await source.refresh()

    toolbox = Toolbox([source], catalogue=parse(Path("catalogue.toml"), stated))
    return SuiteTools(toolbox=toolbox, change=change, prefix="suite__")


@contextlib.asynccontextmanager
async def grpc_tools() -> AsyncIterator[SuiteTools]:
    """A tool server over gRPC, by the Python helper."""
    stated = b'[[server]]\nname = "suite"\ngrpc = "suite:1"\n[[tool]]\ntool = "suite__*"\nclass = "read_only"\n'
    server = suite_service(PythonTools(suite_tools.TOOLS))
    async with served(server) as address, connected(address, name="suite") as source:
        await source.refresh()

        async def change() -> None:
            offer(server, PythonTools(suite_tools.CHANGED))
            await source.refresh()

        toolbox = Toolbox([source], catalogue=parse(Path("catalogue.toml"), stated))
        yield SuiteTools(toolbox=toolbox, change=change, prefix="suite__")


SOURCES: Final[Mapping[str, Source]] = {
    "python": python_tools,
    "mcp-stdio": mcp_stdio_tools,
    "mcp-http": mcp_http_tools,
    "grpc": grpc_tools,
}
"""By the kind of source. A further kind is a line here."""
