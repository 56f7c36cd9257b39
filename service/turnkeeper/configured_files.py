"""The agents, the tools and the catalogue that the settings name: read at start, and again where that is requested."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from turnkeeper import agents_file
from turnkeeper.domain.agent import Agent
from turnkeeper.errors import AgentConfigError
from turnkeeper.settings import Settings
from turnkeeper.tools import catalogue, tools_file
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.servers import Reader, RunningServer, ToolServers, readers
from turnkeeper.tools.toolbox import Toolbox
from turnkeeper.watched_file import BadFile, WatchedFile


def model_named_by(agent: Agent) -> str:
    """Returns the name of the model that the agent's settings name."""
    return agent.model


def toolbox_of(tools: Path | None, catalogue_file: Path | None) -> Toolbox:
    """Returns the tools of the files, without a connection to any server. Raises AgentConfigError and BadFile."""
    content = catalogue.load(catalogue_file)
    servers = ToolServers(content.servers, readers())
    return Toolbox([PythonTools(tools_file.with_installed(tools)), *servers.sources], catalogue=content)


class ConfiguredFiles:
    """The agents by name, and the tools, of a running server."""

    def __init__(
        self,
        settings: Settings,
        *,
        is_followed: bool = False,
        share_port: bool = False,
        server_readers: Mapping[str, Reader] | None = None,
    ) -> None:
        """Reads the tools and the catalogue. Raises AgentConfigError and BadFile.

        `is_followed`: `follow` reads the catalogue again when it changes. `share_port`: other processes of the same
        supervisor listen on the ports, too. `server_readers` make the sources of tool servers, by kind; None: those of
        this version.
        """
        self._settings = settings
        self._default_model = settings.model
        self._answered_by: Callable[[Agent], str] = model_named_by
        self.tools = PythonTools(tools_file.with_installed(settings.tools))
        self._catalogue = catalogue.load(settings.catalogue)
        self._watched = self._watched_catalogue(settings.catalogue) if is_followed and settings.catalogue else None
        kinds = server_readers or readers(needs_keys=share_port and settings.jwks_port is not None)
        self.servers = ToolServers(self._catalogue.servers, kinds)
        """The sources of the catalogue's servers. The caller runs them while the server runs."""
        self.toolbox = Toolbox(
            [self.tools, *self.servers.sources], catalogue=self._catalogue, record_content=settings.record_content
        )
        self.servers.under_way = self.toolbox.under_way
        self.agents: dict[str, Agent] = {}
        """Empty before `read_agents`; changed in place by `reload`, because all parts of the server share it."""

    def read_agents(self, *, default_model: str, answered_by: Callable[[Agent], str] = model_named_by) -> None:
        """Reads the agents. `default_model` is that of agents that name none. Raises AgentConfigError.

        `answered_by` returns the name of the model that answers for an agent.
        """
        self._default_model, self._answered_by = self._settings.model or default_model, answered_by
        self.toolbox.listing.check_names()
        self.agents.update(self._agents(self.toolbox))

    async def reload(self, check: Callable[[Iterable[Agent]], None]) -> None:
        """Reads the files again. A call that runs goes on with the old code, the next call of any session has the new.

        `check` may refuse the agents. Raises what it raises, AgentConfigError and BadFile; then nothing has changed.
        """
        functions = await asyncio.to_thread(tools_file.with_installed, self._settings.tools)
        read = await asyncio.to_thread(catalogue.load, self._settings.catalogue)
        async with self._trying(PythonTools(functions), read) as (servers, agents):
            check(agents.values())
            self.tools.replace(functions)
            self._set_catalogue(read, servers)
        self.agents.clear()
        self.agents.update(agents)

    def report_to(self, report: Callable[[str, str], None]) -> None:
        """Reports each change of the catalogue while `follow` runs: `report` is called as that of WatchedFile."""
        if self._watched is not None:
            self._watched.report = report

    async def follow(self) -> None:
        """Follows the catalogue's file until it is cancelled. Returns at once if it is not to."""
        if self._watched is not None:
            await self._watched.run()

    def _watched_catalogue(self, path: Path) -> WatchedFile[catalogue.Catalogue]:
        watched = WatchedFile(
            path,
            partial(catalogue.parse, path),
            name="catalogue",
            max_bytes=catalogue.MAX_BYTES,
        )
        watched.apply = self._take_catalogue
        self._catalogue = watched.value
        return watched

    async def _take_catalogue(self, read: catalogue.Catalogue) -> None:
        """Takes a catalogue from now on; calls under way end under the one before. Raises BadFile: nothing has changed.

        The agents of today's file must fit it, as at a start.
        """
        try:
            async with self._trying(self.tools, read) as (servers, _):
                self._set_catalogue(read, servers)
        except AgentConfigError as error:
            raise BadFile(str(error)) from error

    @asynccontextmanager
    async def _trying(
        self, tools: PythonTools, read: catalogue.Catalogue
    ) -> AsyncIterator[tuple[Mapping[str, RunningServer], Mapping[str, Agent]]]:
        """Returns a catalogue's sources, with their lists, and the agents, which fit; nothing has changed by then.

        Raises BadFile and AgentConfigError.
        """
        servers = self.servers.with_sources(read.servers)
        async with self.servers.trying(servers):
            toolbox = Toolbox([tools, *(source for _, source in servers.values())], catalogue=read)
            yield servers, self._agents(toolbox)

    def _set_catalogue(self, read: catalogue.Catalogue, servers: Mapping[str, RunningServer]) -> None:
        self._catalogue = read
        self.servers.set(servers)
        self.toolbox.reload([self.tools, *self.servers.sources], catalogue=read)

    def _agents(self, toolbox: Toolbox) -> Mapping[str, Agent]:
        path = self._settings.agents or agents_file.SAMPLES
        agents = agents_file.load(path, default_model=self._default_model, toolbox=toolbox)
        return {name: replace(agent, model=self._answered_by(agent)) for name, agent in agents.items()}
