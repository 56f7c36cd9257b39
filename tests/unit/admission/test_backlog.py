"""How long a new turn would wait follows the turns before it and the rate at which turns began."""

import math

from tests import builders
from turnkeeper.admission.backlog import FORGET_SECONDS, RATE_SECONDS, Backlog
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import Turn, TurnState


class Replica:
    """A backlog with a clock, of a replica that has no room for another turn."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.room = 0
        self.backlog = Backlog(clock=lambda: self.now)
        self.backlog.room = lambda: self.room

    def stores(self, number: int, state: TurnState) -> None:
        self.backlog.stored(a_turn(number, state))

    def accepts(self, count: int) -> None:
        for number in range(count):
            self.stores(number, TurnState.PENDING)


def a_turn(number: int, state: TurnState) -> Turn:
    return builders.a_turn(SessionKey("a tenant", "a session"), id=f"turn-{number}", state=state)


def test_with_room_there_is_no_wait() -> None:
    replica = Replica()
    replica.accepts(5)
    replica.room = 6
    assert replica.backlog.seconds() == 0


def test_calls_whose_turns_are_still_to_come_take_room() -> None:
    """Otherwise a place that has become free would let all in that come until one of them has taken it."""
    replica = Replica()
    replica.room = 1
    replica.backlog.began("turn-100")
    replica.backlog.coming = 1
    assert replica.backlog.seconds() == 0
    replica.backlog.coming = 3
    assert replica.backlog.seconds() == 2 * RATE_SECONDS


def test_without_turns_before_it_there_is_no_wait_to_know_of() -> None:
    assert Replica().backlog.seconds() == 0


def test_the_wait_is_that_of_the_turns_before_at_the_rate_of_the_last_seconds() -> None:
    replica = Replica()
    replica.accepts(6)
    for number in (100, 101, 102):
        replica.backlog.began(f"turn-{number}")
    assert replica.backlog.seconds() == 6 * RATE_SECONDS / 3
    replica.backlog.began("turn-0")
    assert replica.backlog.seconds() == 5 * RATE_SECONDS / 4


def test_where_no_turn_began_the_wait_has_no_end() -> None:
    replica = Replica()
    replica.backlog.began("turn-100")
    replica.accepts(1)
    assert replica.backlog.seconds() == RATE_SECONDS
    replica.now += RATE_SECONDS + 1
    assert replica.backlog.seconds() == math.inf


def test_turns_that_wait_for_people_or_have_ended_do_not_count() -> None:
    replica = Replica()
    replica.accepts(4)
    replica.stores(0, TurnState.AWAITING_APPROVAL)
    replica.stores(1, TurnState.CANCELLED)
    replica.stores(2, TurnState.RUNNING)
    assert replica.backlog.waiting == 1


def test_a_turn_that_is_to_be_tried_again_counts() -> None:
    replica = Replica()
    replica.stores(0, TurnState.RUNNING)
    replica.stores(0, TurnState.BACKING_OFF)
    assert replica.backlog.waiting == 1


def test_a_turn_that_another_replica_may_have_taken_is_forgotten() -> None:
    replica = Replica()
    replica.accepts(3)
    replica.now += FORGET_SECONDS + 1
    replica.stores(7, TurnState.PENDING)
    assert replica.backlog.waiting == 1


def test_it_knows_how_many_turns_of_a_tenant_wait() -> None:
    replica = Replica()
    replica.accepts(3)
    replica.accepts(3)
    replica.stores(0, TurnState.RUNNING)
    replica.backlog.began("turn-1")
    replica.backlog.began("turn-1")
    assert [replica.backlog.waiting_of(tenant) for tenant in ("a tenant", "another")] == [1, 0]
    replica.now += FORGET_SECONDS + 1
    assert replica.backlog.waiting_of("a tenant") == 0
