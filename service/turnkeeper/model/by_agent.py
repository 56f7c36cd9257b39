"""Finds the model of each agent."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

from turnkeeper.domain.agent import Agent
from turnkeeper.model.contract import Model
from turnkeeper.model.deadline_watch import Deadlines
from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.local import LocalModel, local_url
from turnkeeper.model.openai import OpenAIModel
from turnkeeper.model.openai_client import Provider
from turnkeeper.model.request_shape import Refusals
from turnkeeper.secret_variables import value_of
from turnkeeper.settings import Settings
from turnkeeper.start_errors import SettingError

CLOUD = "https://api.openai.com/v1"
CLOUD_MODEL = "gpt-4.1-mini"
CLOSE_TIME = 2.0
"""Seconds for the connections of all models to be closed at the end."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""An environment variable in the value of a header."""

logger = logging.getLogger(__name__)


class Models:
    """The model of each agent; agents that reach one address in one way share a client."""

    def __init__(
        self,
        default: Provider | None,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        default_of: Callable[[Agent], Provider | None] | None = None,
    ) -> None:
        """`default` serves the agents without a `base_url`; `environ` holds the keys that agents name.

        `default_of` chooses the provider of each such agent instead.
        """
        self._default_of = default_of or (lambda _: default)
        self._environ = environ
        self._deadlines = Deadlines(
            first_token=settings.first_token, between_tokens=settings.between_tokens, total=settings.answer_time
        )
        self._refusals = Refusals()
        self._models: dict[Provider, Model] = {}

    def check(self, agents: Iterable[Agent]) -> None:
        """Raises SettingError if an agent's address, key or headers cannot be used: the start fails, not the turns."""
        for agent in agents:
            try:
                self._connected(agent)
            except ValueError as error:
                raise SettingError(f"agent {agent.name}: {error}") from error

    def of(self, agent: Agent) -> Model:
        """Returns the agent's model. Raises ModelFailure for an address, a key or a header that cannot be used.

        The start has checked the agents of the file; a session may have pinned an older version.
        """
        try:
            return self._connected(agent)
        except (SettingError, ValueError):
            raise failure(Reason.BAD_PROVIDER) from None

    def _connected(self, agent: Agent) -> Model:
        """Returns the agent's model. Raises ValueError for what cannot be used."""
        provider = self._default_of(agent)
        if agent.base_url or provider is None:
            key = value_of(self._environ, agent.api_key_env or "OPENAI_API_KEY") or "none"
            provider = Provider(base_url=agent.base_url or CLOUD, api_key=key)
        provider = replace(
            provider,
            limit_field=agent.limit_field,
            headers=tuple((name, self._filled(name, value)) for name, value in agent.extra_headers),
            extra_body_json=agent.extra_body_json,
            omit=agent.omit,
            follow_redirects=agent.follow_redirects,
        )
        if provider not in self._models:
            self._models[provider] = OpenAIModel.connect(provider, deadlines=self._deadlines, refusals=self._refusals)
        return self._models[provider]

    def _filled(self, name: str, value: str) -> str:
        """Returns a header's value with its variables. Raises ValueError for one that is not set."""

        def variable(match: re.Match[str]) -> str:
            content = value_of(self._environ, match[1])
            if not content:
                raise ValueError(f"the header {name} needs the environment variable {match[1]}, which is not set")
            return content

        return _VARIABLE.sub(variable, value)

    async def close(self) -> None:
        """Closes the connections of all models, in CLOSE_TIME at most. Raises nothing: the process ends anyway."""
        closing = [asyncio.create_task(model.close()) for model in self._models.values()]
        if not closing:
            return
        ended, _ = await asyncio.wait(closing, timeout=CLOSE_TIME)
        failed = len(closing) - sum(1 for task in ended if not task.cancelled() and task.exception() is None)
        if failed:
            logger.warning("the connections of %d models were not closed: they end with the process", failed)


async def provider_of(
    settings: Settings, environ: Mapping[str, str], stack: AsyncExitStack
) -> tuple[Provider | None, str]:
    """Returns the provider of agents without a `base_url`, None if there is none, and the default model's name."""
    key = value_of(environ, "OPENAI_API_KEY")
    if settings.openai_base_url or key:
        return Provider(base_url=settings.openai_base_url or CLOUD, api_key=key or "none"), CLOUD_MODEL
    url = await local_url(environ, stack, enabled=settings.local_model, base_url=settings.openai_base_url)
    if not url:
        return None, CLOUD_MODEL
    return Provider(base_url=url, api_key="none", close_connections=True), LocalModel.model_name


def check_provider(provider: Provider | None, agents: Iterable[Agent]) -> None:
    """Raises SettingError if an agent has no model's server: neither one of its own nor the default."""
    if provider is None and any(not agent.base_url for agent in agents):
        ways = "set OPENAI_API_KEY or OPENAI_BASE_URL, pass --local-model, or give each agent a base_url"
        raise SettingError(f"no model is set: {ways}")
