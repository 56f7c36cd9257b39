"""Places for turns: how many run on this replica, of which agents and tenants, and whether one more may."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from turnkeeper.errors import AgentNotAvailable
from turnkeeper.store.changeset import Busy

TRY_AGAIN: Final = timedelta(seconds=1)
"""When a message that found its agent busy is to be sent again."""


def unlimited(_name: str) -> int:
    """Returns 0, which stands for any number of turns."""
    return 0


class Counts:
    """Turns by the name of their agent, or of their tenant. Empty names are not counted."""

    def __init__(self, most: Callable[[str], int]) -> None:
        """`most` returns how many turns of a name may run at the same time; 0 for any number."""
        self.most = most
        self._counts: Counter[str] = Counter()

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def add(self, name: str, count: int) -> None:
        """Counts turns that begin, or turns that end if `count` is negative."""
        if name:
            self._counts[name] += count
            if not self._counts[name]:
                del self._counts[name]

    def is_full(self, name: str) -> bool:
        """Returns True if no further turn of this name may run."""
        most = self.most(name) if name else 0
        return bool(most) and self._counts[name] >= most

    def full(self) -> frozenset[str]:
        """Returns the names of which no further turn may run."""
        return frozenset(name for name in self._counts if self.is_full(name))


class Room:
    """A place for one more turn, reserved while its lease is being taken."""

    def __init__(self, agents: Counts, *, is_free: bool) -> None:
        self.is_free = is_free
        """True if this replica may run the turn."""
        self.agent = ""
        self._agents = agents

    def take(self, agent: str) -> None:
        """Reserves a place of this agent. Raises AgentNotAvailable if the agent has none left on this replica."""
        if agent == self.agent:
            return
        if self._agents.is_full(agent):
            raise AgentNotAvailable(metadata={"agent": agent}, retry_after=TRY_AGAIN)
        self._agents.add(self.agent, -1)
        self._agents.add(agent, 1)
        self.agent = agent


class Rooms:
    """The places of a replica."""

    def __init__(self, concurrency: int, *, running: Callable[[], int], most_of_agent: Callable[[str], int]) -> None:
        """`running` returns how many turns run; at most `concurrency` may."""
        self._concurrency, self._running = concurrency, running
        self._reserved = 0
        self.agents = Counts(most_of_agent)
        self.tenants = Counts(unlimited)

    @property
    def left(self) -> int:
        """How many more turns may run, those for which places are reserved included."""
        return self._concurrency - self._running()

    @property
    def busy(self) -> Busy:
        """The agents and tenants of which no further turn may run."""
        return Busy(agents=self.agents.full(), tenants=self.tenants.full())

    @contextmanager
    def reserve(self, tenant: str, *, is_open: bool) -> Iterator[Room]:
        """Reserves a place for a turn of the tenant, or of any with an empty name. Without one, the room is not free.

        `is_open`: the replica begins turns.
        """
        is_free = is_open and self.left > self._reserved and not self.tenants.is_full(tenant)
        room = Room(self.agents, is_free=is_free)
        self._reserved += is_free
        self.tenants.add(tenant, int(is_free))
        try:
            yield room
        finally:
            self._reserved -= is_free
            self.tenants.add(tenant, -int(is_free))
            self.agents.add(room.agent, -1)

    def began(self, *, agent: str, tenant: str) -> None:
        """Counts a turn that begins to run."""
        self.agents.add(agent, 1)
        self.tenants.add(tenant, 1)

    def ended(self, *, agent: str, tenant: str) -> None:
        """Counts off a turn that no longer runs."""
        self.agents.add(agent, -1)
        self.tenants.add(tenant, -1)
