# Generated from ../agents.py by `make sync-client`. Do not edit.
"""The agents that sessions can be created with."""

from collections.abc import Iterator

from turnkeeper_client.pb.v1.agent_pb2 import Agent, GetAgentRequest, ListAgentsRequest
from turnkeeper_client.sync.calls import call, every
from turnkeeper_client.sync.stubs import Stubs


class Agents:
    """The agents of the service."""

    def __init__(self, stubs: Stubs) -> None:
        self._stubs = stubs

    def list(self) -> Iterator[Agent]:
        """Returns all agents, ordered by name."""
        return every(self._stubs.agents.ListAgents, ListAgentsRequest(), lambda page: page.agents)

    def get(self, name: str, *, version: str = "") -> Agent:
        """Returns an agent in the version named, by default the newest. Raises NotFound."""
        return (call(self._stubs.agents.GetAgent, GetAgentRequest(name=name, version=version))).agent
