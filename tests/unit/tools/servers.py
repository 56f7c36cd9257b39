"""A tool server that lives in the test, behind the same contract as those that are reached by a connection."""

import asyncio
from collections.abc import Callable, Sequence
from inspect import isawaitable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from turnkeeper.domain.tool import ToolClass, ToolSpec
from turnkeeper.tools.catalogue import ToolServer
from turnkeeper.tools.contract import SourceUnreachable, ToolContext
from turnkeeper.tools.naming import full_name

SCHEMA = '{"type":"object"}'


class Table(BaseModel):
    """The table of such a server in the catalogue."""

    model_config = ConfigDict(extra="forbid")

    mcp: str
    tools: list[str] = []
    is_down: bool = False


class LocalServer:
    """Offers the tools that its table names; each returns its own name."""

    gates: ClassVar[dict[str, asyncio.Event]] = {}
    """By server: it lists its tools once this is set."""
    waiting: ClassVar[int] = 0
    """Servers that wait for that."""

    def __init__(self, server: ToolServer) -> None:
        table = server.read(Table)
        self.name = server.name
        self.problem = ""
        self.listing = 0
        self.is_down = table.is_down
        self.is_running = False
        self.runs = 0
        self.tools = table.tools
        self.answer: Callable[[str, dict[str, object]], Any] = lambda name, _: f'"{name}"'
        self._listed: Sequence[ToolSpec] | None = None

    def specs(self) -> Sequence[ToolSpec]:
        if self._listed is None:
            raise SourceUnreachable(f"{self.name} has not answered yet")
        return self._listed

    def offer(self, *tools: str, tool_class: ToolClass = ToolClass.READ_ONLY, description: str = "") -> None:
        """Lists these tools from now on."""
        self._listed = [
            ToolSpec(
                name=full_name(self.name, tool),
                description=description or tool,
                schema_json=SCHEMA,
                tool_class=tool_class,
                source=self.name,
            )
            for tool in tools
        ]
        self.listing += 1

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        answer = self.answer(name, arguments)
        return str(await answer if isawaitable(answer) else answer)

    async def run(self) -> None:
        assert not self.is_running, "one task at a time runs a source"
        self.is_running = True
        self.runs += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.is_running = False

    async def refresh(self) -> None:
        if (gate := self.gates.get(self.name)) is not None:
            LocalServer.waiting += 1
            await gate.wait()
            LocalServer.waiting -= 1
        if self.is_down:
            raise SourceUnreachable("nothing answers there")
        self.offer(*self.tools)
