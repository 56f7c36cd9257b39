"""The agents and the tools of the files that the settings name: read at start, and again where that is asked for."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from turnkeeper import agents_file
from turnkeeper.domain.agent import Agent
from turnkeeper.settings import Settings
from turnkeeper.tools import tools_file
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.toolbox import Toolbox


def model_named_by(agent: Agent) -> str:
    """Returns the name of the model that the agent's settings name."""
    return agent.model


class ConfiguredFiles:
    """The agents by name, and the tools, of a running server."""

    def __init__(self, settings: Settings) -> None:
        """Reads the tools. Raises AgentConfigError."""
        self._settings = settings
        self._default_model = settings.model
        self._answered_by: Callable[[Agent], str] = model_named_by
        self.tools = PythonTools(tools_file.with_installed(settings.tools))
        self.toolbox = Toolbox([self.tools], record_content=settings.record_content)
        self.agents: dict[str, Agent] = {}
        """Empty before `read_agents`; changed in place by `reload`, because all parts of the server share it."""

    def read_agents(self, *, default_model: str, answered_by: Callable[[Agent], str] = model_named_by) -> None:
        """Reads the agents. `default_model` is that of agents that name none. Raises AgentConfigError.

        `answered_by` returns the name of the model that answers for an agent.
        """
        self._default_model, self._answered_by = self._settings.model or default_model, answered_by
        self.agents.update(self._agents())

    async def reload(self, check: Callable[[Iterable[Agent]], None]) -> None:
        """Reads the files again. A call that runs goes on with the old code, the next call of any session has the new.

        `check` may refuse the agents. Raises what it raises, and AgentConfigError; then nothing has changed.
        """
        functions = await asyncio.to_thread(tools_file.with_installed, self._settings.tools)
        before = self.tools.functions
        self._set_tools(functions)
        try:
            agents = self._agents()
            check(agents.values())
        except BaseException:
            self._set_tools(before)
            raise
        self.agents.clear()
        self.agents.update(agents)

    def _set_tools(self, functions: Iterable[Callable[..., object]]) -> None:
        self.tools.replace(functions)
        self.toolbox.reload()

    def _agents(self) -> Mapping[str, Agent]:
        path = self._settings.agents or agents_file.SAMPLES
        agents = agents_file.load(path, default_model=self._default_model, toolbox=self.toolbox)
        return {name: replace(agent, model=self._answered_by(agent)) for name, agent in agents.items()}
