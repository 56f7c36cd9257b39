"""All tools at one state of their sources, by name: what each agent is offered."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.offered_tools import OfferedTools
from turnkeeper.domain.tool import ToolClass, ToolSpec
from turnkeeper.errors import AgentConfigError
from turnkeeper.tools.catalogue import Catalogue, CatalogueEntry
from turnkeeper.tools.contract import SourceUnreachable, ToolSource

MOST_AGENTS: Final = 4_096
"""Versions of agents whose tools are kept as they are offered."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListedTool:
    """A tool, where it comes from, and what the catalogue states about it."""

    spec: ToolSpec
    """As the catalogue has it: the strictest of both."""
    source: ToolSource
    entry: CatalogueEntry

    def is_for(self, agent: Agent) -> bool:
        """Returns True if the agent may call the tool. No agent may call a FORBIDDEN one."""
        spec = self.spec
        return spec.tool_class is not ToolClass.FORBIDDEN and agent.offers(spec.name) and self.entry.admits(agent.name)


class Listing:
    """The tools of all sources. It never changes: another state of a source makes another listing."""

    def __init__(self, sources: Sequence[ToolSource], catalogue: Catalogue, before: "Listing | None" = None) -> None:
        """`before`: the listing that this one follows; its tools keep their names."""
        self.sources = sources
        self.catalogue = catalogue
        self._numbers = [source.listing for source in sources]  # before `specs`: an older number is only read again
        self.tools: dict[str, ListedTool] = {}
        self.refused: dict[str, str] = {}
        """The tools that have another tool's name, each with the reason."""
        self.unlisted: set[str] = set()
        """Tools of servers that no entry of the catalogue covers: they are not offered."""
        self.unreachable: dict[ToolSource, str] = {}
        """Why sources have no list yet."""
        self._collisions: set[str] = set()
        self._offered: dict[tuple[str, str], OfferedTools] = {}
        self._fill(before.tools if before is not None else {})

    @property
    def is_current(self) -> bool:
        """Returns True while no source has changed since."""
        return [source.listing for source in self.sources] == self._numbers

    def offered(self, agent: Agent) -> OfferedTools:
        """Returns the agent's tools by name: the same object for the same version of the agent."""
        key = (agent.name, agent.version)
        offered = self._offered.get(key)
        if offered is None:
            if len(self._offered) >= MOST_AGENTS:
                self._offered.clear()
            tools = (tool.spec for _, tool in sorted(self.tools.items()) if tool.is_for(agent))
            offered = self._offered[key] = OfferedTools(tools)
        return offered

    def check_names(self) -> None:
        """Raises AgentConfigError if two sources have a tool of one name."""
        for name in sorted(self._collisions):
            raise AgentConfigError(f"{self.refused[name]}; rename one, or a server of the catalogue.")

    def log_problems(self, before: "Listing | None" = None) -> None:
        """Logs a WARNING for each tool that is refused and each source without a list, unless `before` had it."""
        known = (before.refused, before.unreachable) if before is not None else ({}, {})
        for name in self.refused.keys() - known[0].keys():
            logger.warning("%s: the newer one is not offered", self.refused[name])
        for source in self.unreachable.keys() - known[1].keys():
            logger.warning("a source of tools has no list yet: its tools are missing: %s", self.unreachable[source])

    def _fill(self, before: Mapping[str, ListedTool]) -> None:
        """Takes each tool; of two with one name the one that had it `before`, or the first."""
        listed = [(source, spec) for source in self.sources for spec in self._specs_of(source)]
        for source, spec in sorted(listed, key=lambda pair: not _had_name(pair[0], pair[1], before)):
            stated = self.catalogue.stated(spec)
            other = self.tools.get(spec.name)
            if stated is None:
                self.unlisted.add(spec.name)
            elif other is None:
                self.tools[spec.name] = ListedTool(stated[0], source, stated[1])
            elif other.source is source:
                self.refused[spec.name] = f"{spec.source} has two tools named {spec.name}"
            else:
                self._collisions.add(spec.name)
                sources = f"{other.spec.source} and {spec.source}"
                self.refused[spec.name] = f"Two sources have a tool named {spec.name}, {sources}"

    def _specs_of(self, source: ToolSource) -> Sequence[ToolSpec]:
        """Returns the tools of a source; none if it has no list yet."""
        try:
            return source.specs()
        except SourceUnreachable as error:
            self.unreachable[source] = str(error)
            return ()


def _had_name(source: ToolSource, spec: ToolSpec, before: Mapping[str, ListedTool]) -> bool:
    return spec.name in before and before[spec.name].source is source
