"""Reports the state of each source of tools, for the metrics of a replica."""

import asyncio
from collections import Counter
from typing import Final, NoReturn, Protocol

from turnkeeper.tools.servers import ToolServers
from turnkeeper.tools.toolbox import Toolbox

REPORT_EVERY: Final = 5.0
"""Seconds between two reports."""


class SourceRecorder(Protocol):
    """Takes the reports."""

    def tool_source(self, source: str, *, count: int, size: int) -> None:
        """Records how many tools a source offers (`size`), and if its calls can reach it now: `count` is 1 or 0."""
        ...


class SourceReport:
    """The states of the Python tools and of all tool servers."""

    def __init__(self, toolbox: Toolbox, servers: ToolServers, recorder: SourceRecorder) -> None:
        self._toolbox = toolbox
        self._servers = servers
        self._recorder = recorder

    async def run(self) -> NoReturn:
        """Reports again and again until it is cancelled."""
        while True:
            self.report()
            await asyncio.sleep(REPORT_EVERY)

    def report(self) -> None:
        """Reports once."""
        tools = Counter(tool.spec.source for tool in self._toolbox.listing.tools.values())
        problems = {"python": "", **{source.name: source.problem for source in self._servers.sources}}
        for name, problem in problems.items():
            self._recorder.tool_source(name, count=int(not problem), size=tools[name])
