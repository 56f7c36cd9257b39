"""The agents that sessions can be created with."""

from collections.abc import AsyncIterator

from turnkeeper_client.calls import call, every
from turnkeeper_client.pb.v1.agent_pb2 import Agent, GetAgentRequest, ListAgentsRequest
from turnkeeper_client.stubs import Stubs


class Agents:
    """The agents of the service."""

    def __init__(self, stubs: Stubs) -> None:
        self._stubs = stubs

    def list(self) -> AsyncIterator[Agent]:
        """Returns all agents, ordered by name."""
        return every(self._stubs.agents.ListAgents, ListAgentsRequest(), lambda page: page.agents)

    async def get(self, name: str, *, version: str = "") -> Agent:
        """Returns an agent in the version named, by default the newest. Raises NotFound."""
        return (await call(self._stubs.agents.GetAgent, GetAgentRequest(name=name, version=version))).agent
