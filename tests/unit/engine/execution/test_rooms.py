"""Room for turns: of the replica, of an agent, of a tenant."""

import pytest

from turnkeeper.engine.execution.rooms import Rooms
from turnkeeper.errors import AgentNotAvailable
from turnkeeper.store.changeset import NONE_BUSY, Busy


class Replica:
    """The rooms of a replica for three turns, of which one may be of the agent `lone` and two of the tenant `small`."""

    def __init__(self) -> None:
        self.running = 0
        most_of_agent = {"lone": 1}
        self.rooms = Rooms(3, running=lambda: self.running, most_of_agent=lambda name: most_of_agent.get(name, 0))
        self.rooms.tenants.most = lambda name: {"small": 2}.get(name, 0)

    def begins(self, agent: str, tenant: str = "large") -> None:
        self.running += 1
        self.rooms.began(agent=agent, tenant=tenant)

    def ends(self, agent: str, tenant: str = "large") -> None:
        self.running -= 1
        self.rooms.ended(agent=agent, tenant=tenant)


def test_places_that_are_reserved_are_taken() -> None:
    replica = Replica()
    replica.begins("any")
    with replica.rooms.reserve("", is_open=True) as second, replica.rooms.reserve("", is_open=True) as third:
        assert second.is_free
        assert third.is_free
        with replica.rooms.reserve("", is_open=True) as fourth:
            assert not fourth.is_free
    with replica.rooms.reserve("", is_open=True) as again:
        assert again.is_free
    with replica.rooms.reserve("", is_open=False) as draining:
        assert not draining.is_free


def test_an_agent_has_only_so_many_places_those_that_are_reserved_included() -> None:
    replica = Replica()
    with replica.rooms.reserve("large", is_open=True) as one, replica.rooms.reserve("large", is_open=True) as other:
        one.take("lone")
        one.take("lone")
        with pytest.raises(AgentNotAvailable):
            other.take("lone")
        other.take("any")
        assert replica.rooms.busy == Busy(agents=frozenset({"lone"}))
    assert replica.rooms.busy == NONE_BUSY
    replica.begins("lone")
    with replica.rooms.reserve("large", is_open=True) as room, pytest.raises(AgentNotAvailable):
        room.take("lone")
    replica.ends("lone")
    with replica.rooms.reserve("large", is_open=True) as room:
        room.take("lone")


def test_a_tenant_at_its_cap_has_no_room() -> None:
    replica = Replica()
    replica.begins("any", "small")
    with replica.rooms.reserve("small", is_open=True) as room, replica.rooms.reserve("small", is_open=True) as next_:
        assert (room.is_free, next_.is_free) == (True, False)
    replica.begins("any", "small")
    assert replica.rooms.busy == Busy(tenants=frozenset({"small"}))
    with replica.rooms.reserve("large", is_open=True) as other:
        assert other.is_free
