"""The version of an agent that a session pinned: from this server's configuration, or as it was stored."""

from collections.abc import Mapping

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.session import Session
from turnkeeper.domain.turn import Turn
from turnkeeper.store.contract import SessionStore


class AgentVersions:
    """Agents by name and version. A version that was read from the store stays in memory; versions never change."""

    def __init__(self, configured: Mapping[str, Agent], store: SessionStore) -> None:
        self._configured = configured
        self._store = store
        self._stored: dict[tuple[str, str, str], Agent] = {}

    def newest(self, name: str) -> Agent | None:
        """Returns the configured agent of this name, or None if there is none."""
        return self._configured.get(name)

    def most_turns(self, name: str) -> int:
        """Returns how many turns of this agent may run on a replica at the same time; 0 for any number.

        The agent's newest version decides for all of them.
        """
        agent = self._configured.get(name)
        return agent.max_concurrent_turns if agent is not None else 0

    async def pinned_by(self, session: Session | Turn) -> Agent | None:
        """Returns the version that the session, or the turn's session, pinned. Returns None if it is not stored."""
        configured = self._configured.get(session.agent)
        if configured is not None and configured.version == session.agent_version:
            return configured
        version = (session.tenant, session.agent, session.agent_version)
        agent = self._stored.get(version)
        if agent is None:
            agent = await self._store.agent(*version)
            if agent is None:
                async with self._store.linearizable():  # without its agent, a turn would fail for good
                    agent = await self._store.agent(*version)
            if agent is not None:
                self._stored[version] = agent
        return agent
