"""The models of `turnkeeper dev`: the caller's own one, or a small local one beside a script that calls tools."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from turnkeeper.domain.agent import Agent
from turnkeeper.model import weights
from turnkeeper.model.by_agent import provider_of
from turnkeeper.model.openai_client import Provider
from turnkeeper.model.script_file import load_script
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.model.typed_calls import TypedCalls
from turnkeeper.secret_variables import value_of
from turnkeeper.settings import Settings

SCRIPT: Final = Path(__file__).with_name("clerk.toml")
SCRIPT_NAME: Final = "script"
"""What lists of agents show as the model of those that the script answers for."""


class DevModels:
    """Chooses the model of each agent that has no `base_url`."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        """`progress` is called with what takes long."""
        self._progress = progress
        self.description = ""
        """For the screen: which models there are."""
        self.problem = ""
        """Why the local model is not there; empty if it is, or if the caller has one."""
        self._own: Provider | None = None
        self._scripted: Provider | None = None

    async def start(
        self, settings: Settings, environ: Mapping[str, str], stack: AsyncExitStack
    ) -> tuple[Provider | None, str]:
        """Starts what is needed, which `stack` stops. Returns the default provider, and the name of its model."""
        if settings.openai_base_url or value_of(environ, "OPENAI_API_KEY"):
            self._own, name = await provider_of(settings, environ, stack)
            self.description = f"{settings.model or name}, yours"
            return self._own, name
        scripted = await stack.enter_async_context(ScriptedModel(chooser=TypedCalls(load_script(SCRIPT))))
        self._scripted = Provider(base_url=scripted.base_url, api_key="none")
        try:
            await self._fetch_once()
            self._own, name = await provider_of(settings, environ, stack)
        except weights.LocalModelError as error:
            self.problem = str(error)
            self.description = "a script; the local model is not there"
            return self._scripted, SCRIPT_NAME
        self.description = f"{name}, local; for agents with tools a script"
        return self._own, name

    async def _fetch_once(self) -> None:
        """Fetches the local model's file if only that is missing. Raises LocalModelError."""
        try:
            weights.find_weights()
        except weights.WeightsMissing:
            self._progress(f"fetching the local model, {weights.SIZE_MB} MB, this once")
            await asyncio.to_thread(weights.fetch, quiet=True)

    def of(self, agent: Agent) -> Provider | None:
        """Returns the provider of an agent: the script's if the agent has tools, which the local model cannot call."""
        if self._scripted is not None and (agent.tools or self._own is None):
            return self._scripted
        return self._own

    def name_of(self, agent: Agent) -> str:
        """Returns the name of the model that answers for an agent: the script's where it does, else the agent's own."""
        is_scripted = self._scripted is not None and not agent.base_url and self.of(agent) is self._scripted
        return SCRIPT_NAME if is_scripted else agent.model
