"""In an overload as many turns are accepted as the replica works off; how long each takes has no effect."""

import itertools
import math

import pytest

from turnkeeper.admission.limit import WINDOW
from turnkeeper.admission.rate import BURST, DECREASE, FAST, LEAST, MOST, SLOW, Rate


class Replica:
    """A rate with a clock, and a replica that works turns off."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rate = Rate(clock=lambda: self.now)

    def passes(self, seconds: float, *, served: float = 0.0, is_overloaded: bool = False, at_work: int = BURST) -> None:
        """Lets so much time pass in which the replica works off `served` turns a second."""
        for _ in range(round(seconds / WINDOW)):
            steps = round(2 * served * WINDOW)
            for _ in range(steps):
                self.now += WINDOW / steps
                self.rate.stepped()
            if not steps:
                self.now += WINDOW
            self.rate.end_window(is_overloaded=is_overloaded, at_work=at_work)

    def takes(self, seconds: float, *, offered: float) -> float:
        """Returns how many turns a second are accepted of those that are offered."""
        count = round(seconds * offered)
        taken = 0
        for _ in range(count):
            self.now += 1 / offered
            taken += self.rate.take()
        return taken / seconds


def test_without_an_overload_there_is_no_limit() -> None:
    replica = Replica()
    replica.passes(60, served=1)
    assert all(replica.rate.take() for _ in range(10_000))


def test_an_overload_accepts_nearly_what_is_worked_off() -> None:
    replica = Replica()
    replica.passes(2, served=100, is_overloaded=True)
    assert replica.rate.per_second == pytest.approx(DECREASE * 100, rel=0.1)
    assert replica.takes(60, offered=500) == pytest.approx(replica.rate.per_second, rel=0.05)


def test_the_rate_follows_what_is_worked_off_while_the_overload_lasts() -> None:
    """It neither falls from window to window, nor stays at what the overload's first second has shown."""
    replica = Replica()
    replica.passes(1, served=10, is_overloaded=True)
    replica.passes(10, served=100, is_overloaded=True)
    assert replica.rate.per_second == pytest.approx(DECREASE * 100, rel=0.1)


def test_some_turns_are_accepted_even_if_none_is_worked_off() -> None:
    replica = Replica()
    replica.passes(30, is_overloaded=True)
    assert replica.rate.per_second == LEAST


def test_it_grows_fast_up_to_what_was_served_before_and_slowly_above() -> None:
    replica = Replica()
    replica.passes(10, served=100)
    replica.passes(3, is_overloaded=True)
    grown = [replica.rate.per_second]
    while grown[-1] < 120:
        replica.passes(WINDOW)
        grown.append(replica.rate.per_second)
    steps = {round(after - before, 6) for before, after in itertools.pairwise(grown)}
    assert steps == {FAST, SLOW}
    assert grown[1] - grown[0] == FAST
    assert grown[-1] - grown[-2] == SLOW


def test_without_signs_the_limit_goes_away() -> None:
    replica = Replica()
    replica.passes(3, served=100, is_overloaded=True)
    replica.passes((MOST / SLOW + 10) * WINDOW)
    assert replica.rate.per_second == math.inf


def test_an_idle_time_lets_a_small_burst_in() -> None:
    replica = Replica()
    replica.passes(2, served=100, is_overloaded=True)
    replica.now += 60
    burst = sum(replica.rate.take() for _ in range(1000))
    assert burst == BURST


def test_a_database_that_is_slow_for_few_callers_refuses_none_of_them() -> None:
    """Each of its commits takes seconds: that alone is a sign of overload."""
    replica = Replica()
    replica.passes(10, served=1)
    replica.passes(WINDOW, is_overloaded=True, at_work=4)
    assert all(replica.rate.take() for _ in range(BURST - 4))
    assert not replica.rate.take()


def test_a_crowd_that_is_at_work_leaves_no_burst_to_others() -> None:
    replica = Replica()
    replica.passes(10, served=100)
    replica.passes(WINDOW, served=100, is_overloaded=True, at_work=200)
    assert not replica.rate.take()
