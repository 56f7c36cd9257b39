"""Finds the model of each agent."""

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

from turnkeeper.domain.agent import Agent
from turnkeeper.model.contract import Model
from turnkeeper.model.deadline_watch import Deadlines
from turnkeeper.model.local import LocalModel, local_url
from turnkeeper.model.openai import OpenAIModel
from turnkeeper.model.openai_client import Provider
from turnkeeper.settings import Settings
from turnkeeper.start_errors import SettingError

CLOUD = "https://api.openai.com/v1"
CLOUD_MODEL = "gpt-4.1-mini"


class Models:
    """The model of each agent; agents at one address share a client."""

    def __init__(self, default: Provider | None, settings: Settings, environ: Mapping[str, str]) -> None:
        """`default` serves the agents without a `base_url`; `environ` holds the keys that agents name."""
        self._default = default
        self._environ = environ
        self._deadlines = Deadlines(
            first_token=settings.first_token, between_tokens=settings.between_tokens, total=settings.answer_time
        )
        self._models: dict[tuple[str, str], Model] = {}

    def check(self, agents: Iterable[Agent]) -> None:
        """Raises SettingError if an agent's address or key cannot be used, so that the start fails and no turn does."""
        for agent in agents:
            try:
                self.of(agent)
            except ValueError as error:
                raise SettingError(f"agent {agent.name}: {error}") from error

    def of(self, agent: Agent) -> Model:
        """Returns the agent's model. Raises ValueError for an address or a key that cannot be used."""
        provider = self._default
        if agent.base_url or provider is None:
            key = self._environ.get(agent.api_key_env or "OPENAI_API_KEY", "") or "none"
            provider = Provider(base_url=agent.base_url or CLOUD, api_key=key)
        at = (provider.base_url, provider.api_key)
        if at not in self._models:
            self._models[at] = OpenAIModel.connect(provider, deadlines=self._deadlines)
        return self._models[at]

    async def close(self) -> None:
        """Closes the connections of all models."""
        for model in self._models.values():
            await model.close()


async def provider_of(
    settings: Settings, environ: Mapping[str, str], stack: AsyncExitStack
) -> tuple[Provider | None, str]:
    """Returns the provider of agents without a `base_url`, None if there is none, and the default model's name."""
    key = environ.get("OPENAI_API_KEY", "")
    if settings.openai_base_url or key:
        return Provider(base_url=settings.openai_base_url or CLOUD, api_key=key or "none"), CLOUD_MODEL
    url = await local_url(environ, stack, enabled=settings.local_model, base_url=settings.openai_base_url)
    if not url:
        return None, CLOUD_MODEL
    return Provider(base_url=url, api_key="none", close_connections=True), LocalModel.model_name
