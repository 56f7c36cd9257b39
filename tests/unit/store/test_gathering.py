"""A batch waits for further entries only while entries come often and waits gather something."""

import random
from collections import deque

import pytest

from turnkeeper.store.mongo.transactions.gathering import APART_S, DENSE_APART_S, OFTEN, REST_S, TRIED, Gathering

START = 1000.0


class Times:
    """A clock, and entries that arrive by it."""

    def __init__(self) -> None:
        self.now = START
        self.gathering = Gathering(lambda: self.now)

    def arrive(self, count: int = 1, *, apart: float = 0.0) -> None:
        for _ in range(count):
            self.now += apart
            self.gathering.arrived()

    def play(self, batches: int, *, entries: int) -> float:
        """Plays batches whose entries arrive during their wait. Returns the seconds that they waited."""
        waited = 0.0
        for _ in range(batches):
            self.arrive()
            if seconds := self.gathering.seconds():
                self.arrive(entries - 1)
                self.now += seconds
                waited += seconds
                self.gathering.ended(entries)
            self.now += 0.003
        return waited


@pytest.fixture
def times() -> Times:
    return Times()


def test_a_lone_entry_waits_for_nothing(times: Times) -> None:
    times.arrive()
    assert times.gathering.seconds() == 0.0


def test_entries_that_come_seldom_wait_for_nothing(times: Times) -> None:
    times.arrive(5 * OFTEN, apart=0.06)
    assert times.gathering.seconds() == 0.0


def test_entries_that_come_often_wait_for_the_next_common_time(times: Times) -> None:
    times.arrive(OFTEN, apart=0.011)
    seconds = times.gathering.seconds()
    assert 0.0 < seconds <= APART_S
    at = (times.now + seconds) / APART_S
    assert at == pytest.approx(round(at))
    times.now += 0.2
    assert times.gathering.seconds() == 0.0, "they come no longer"


def test_entries_that_come_very_often_wait_for_half_as_long(times: Times) -> None:
    """Enough of them share a batch then."""
    longest = 0.0
    for _ in range(100):
        times.arrive(OFTEN, apart=0.003)
        longest = max(longest, times.gathering.seconds())
    assert DENSE_APART_S / 2 < longest <= DENSE_APART_S


def test_waits_go_on_while_they_gather_something(times: Times) -> None:
    times.play(OFTEN, entries=2)
    assert times.play(20 * TRIED, entries=2) > 20 * TRIED * APART_S / 4


def test_a_caller_whose_entries_come_one_after_the_other_soon_waits_no_more(times: Times) -> None:
    times.play(OFTEN + TRIED, entries=1)
    assert times.play(1000, entries=1) == 0.0
    times.now += REST_S
    assert times.play(OFTEN + TRIED, entries=1) <= TRIED * APART_S


def test_entries_of_many_callers_share_batches(times: Times) -> None:
    """Entries at random times, a hundred a second, and commits of 5 ms: four share a batch."""
    rng, gathering = random.Random(1), times.gathering
    arrivals = deque(sorted(START + rng.uniform(0, 30) for _ in range(3000)))
    batches = 0

    def arrive_until(end: float) -> int:
        waiting = 0
        while arrivals and arrivals[0] <= end:
            times.now = max(times.now, arrivals.popleft())
            gathering.arrived()
            waiting += 1
        times.now = end
        return waiting

    while arrivals:
        waiting = arrive_until(max(times.now, arrivals[0]))
        if seconds := gathering.seconds():
            gathering.ended(waiting + arrive_until(times.now + seconds))
        batches += 1
        times.now += 0.005
    assert batches < 850
