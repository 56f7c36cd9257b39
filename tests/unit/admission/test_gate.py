"""The gate refuses calls in the order of their kinds, by what is at work and not by how long it takes."""

from datetime import timedelta

import pytest

from turnkeeper.admission.gate import MOST_WAITING, RETRY_MAX, RETRY_MIN, AdmittedCall, Gate, Kind
from turnkeeper.admission.limit import LEAST, REMEMBERED, WINDOW, WINDOWS
from turnkeeper.admission.load import Load
from turnkeeper.admission.rate import BURST
from turnkeeper.errors import Overloaded


class Desk:
    """A gate with a clock, and what it reported."""

    def __init__(self, *, limit: float = 10.0, jitter: float = 0.5) -> None:
        self.now = 1000.0
        self.load = Load()
        self.load.limit.calls = limit
        self.refusals: list[tuple[str, str]] = []
        self.gate = Gate(self.load, timedelta(seconds=30), jitter=lambda: jitter, recorder=self, clock=lambda: self.now)

    def refusal(self, kind: str, *, reason: str) -> None:
        self.refusals.append((kind, reason))

    def set_call_limit(self, count: int) -> None:
        pass

    def fill(self, count: int) -> list[AdmittedCall]:
        return [self.gate.admit(Kind.DECISION) for _ in range(count)]

    def admit_turn(self) -> AdmittedCall:
        """Admits a message of a caller that is known."""
        admitted = self.gate.admit(Kind.MESSAGE, adds_turn=True)
        admitted.add_turn()
        return admitted

    def refused(self, kind: Kind, *, adds_turn: bool = False) -> Overloaded:
        with pytest.raises(Overloaded) as raised:
            self.gate.admit(kind, adds_turn=adds_turn)
        return raised.value

    def admits(self, kind: Kind) -> bool:
        try:
            self.gate.admit(kind).end()
        except Overloaded:
            return False
        return True


def test_watches_are_refused_first_then_messages_then_reads_then_decisions() -> None:
    desk = Desk()
    order: list[Kind] = []
    while len(order) < len(Kind):
        order += [kind for kind in Kind if kind not in order and not desk.admits(kind)]
        if desk.admits(Kind.DECISION):
            desk.gate.admit(Kind.DECISION)
    assert order == [Kind.WATCH, Kind.MESSAGE, Kind.READ, Kind.DECISION]


def test_a_call_that_rests_makes_room() -> None:
    desk = Desk()
    calls = desk.fill(10)
    assert not desk.admits(Kind.MESSAGE)
    for call in calls:
        call.rest()
        call.rest()
    assert (desk.gate.at_work, desk.gate.waiting) == (0, 10)
    assert desk.admits(Kind.WATCH)
    for call in calls:
        call.end()
    assert (desk.gate.at_work, desk.gate.waiting) == (0, 0)


def test_calls_that_wait_for_hours_are_no_overload() -> None:
    desk = Desk(limit=float(LEAST))
    for _ in range(5000):
        desk.admit_turn().rest()
        desk.now += 60
    assert not desk.refusals


def test_calls_that_wait_have_a_limit_of_memory() -> None:
    desk = Desk()
    for _ in range(MOST_WAITING):
        desk.gate.admit(Kind.WATCH).rest()
    assert desk.refused(Kind.WATCH).metadata == {"limit": "calls_waiting"}
    assert desk.admits(Kind.DECISION)


def test_a_refusal_names_the_limit_and_when_to_try_again() -> None:
    desk = Desk()
    desk.fill(10)
    refusal = desk.refused(Kind.MESSAGE)
    assert refusal.metadata == {"limit": "calls_at_work"}
    assert refusal.retry_after is not None
    assert RETRY_MIN <= refusal.retry_after.total_seconds() <= RETRY_MAX
    assert desk.refusals == [("message", "calls_at_work")]


def test_refused_callers_come_back_one_after_the_other() -> None:
    desk = Desk()
    desk.fill(10)
    times = [desk.refused(Kind.MESSAGE).retry_after or timedelta() for _ in range(50)]
    assert times == sorted(times)
    assert times[-1] - times[0] > timedelta(seconds=2), "as fast as calls are admitted, 20 a second at least"
    assert max(desk.refused(Kind.MESSAGE).retry_after or timedelta() for _ in range(1000)) <= timedelta(
        seconds=RETRY_MAX
    )


def test_they_come_back_faster_where_more_calls_are_admitted() -> None:
    slow, fast = Desk(limit=10), Desk(limit=10)
    for _ in range(50):
        for _ in range(round(200 * WINDOW)):
            fast.gate.admit(Kind.READ).end()
        fast.gate.end_window()
        slow.gate.end_window()
    for desk in (slow, fast):
        desk.load.limit.calls = 10
        desk.fill(10)
    spread = [[desk.refused(Kind.MESSAGE).retry_after or timedelta() for _ in range(100)] for desk in (slow, fast)]
    assert spread[1][-1] - spread[1][0] < (spread[0][-1] - spread[0][0]) / 4


def test_jitter_spreads_the_callers() -> None:
    early, late = Desk(jitter=0.0), Desk(jitter=1.0)
    for desk in (early, late):
        desk.fill(10)
    first, last = (desk.refused(Kind.MESSAGE).retry_after or timedelta() for desk in (early, late))
    assert last > first * 1.5


def test_a_turn_is_to_come_until_its_call_has_ended_or_waits() -> None:
    desk = Desk()
    first, second, read = desk.admit_turn(), desk.admit_turn(), desk.gate.admit(Kind.MESSAGE)
    assert desk.load.backlog.coming == 2
    first.rest()
    first.end()
    read.end()
    assert desk.load.backlog.coming == 1
    second.end()
    assert desk.load.backlog.coming == 0


def test_messages_above_the_rate_of_an_overload_are_refused_and_other_calls_are_not() -> None:
    desk = Desk()
    desk.load.rate.end_window(is_overloaded=True, at_work=BURST)
    assert desk.refused(Kind.MESSAGE, adds_turn=True).metadata == {"limit": "turn_rate"}
    for kind in (Kind.WATCH, Kind.MESSAGE, Kind.READ, Kind.DECISION):
        assert desk.admits(kind)


def test_calls_of_unknown_callers_use_up_no_turns() -> None:
    """They are refused after the gate, and may wait for keys meanwhile: what is left is for callers that are known."""
    desk = Desk(limit=1000)
    desk.load.backlog.room = lambda: 1
    desk.load.rate.end_window(is_overloaded=True, at_work=BURST - 1)
    unknown = [desk.gate.admit(Kind.MESSAGE, adds_turn=True) for _ in range(2 * BURST)]
    assert desk.load.backlog.coming == 0
    known = desk.admit_turn()
    assert desk.load.backlog.coming == 1
    with pytest.raises(Overloaded) as raised:
        unknown[0].add_turn()
    assert raised.value.metadata == {"limit": "turn_rate"}
    for call in (known, *unknown):
        call.end()
    assert (desk.gate.at_work, desk.load.backlog.coming) == (0, 0)


def wait_of(desk: Desk, seconds: float) -> None:
    """Lets a further turn wait for so many seconds: ten turns began in the last ten, and none has room."""
    desk.load.backlog.room = lambda: 0
    for number in range(10):
        desk.load.backlog.began(f"turn-{number}")
    desk.load.backlog.coming = round(seconds)


def test_a_message_is_refused_if_its_turn_would_begin_too_late() -> None:
    desk = Desk()
    wait_of(desk, 29)
    desk.admit_turn().end()
    desk.load.backlog.coming = 31
    assert desk.refused(Kind.MESSAGE, adds_turn=True).metadata == {"limit": "accept_wait"}
    desk.gate.admit(Kind.MESSAGE).end()
    desk.gate.admit(Kind.READ).end()


def test_a_message_is_refused_in_an_overload_if_its_turn_would_not_begin_at_once() -> None:
    desk = Desk()
    wait_of(desk, 1)
    for _ in range(WINDOWS):
        desk.admit_turn().end()
        desk.load.limit.late(1.0)
        desk.gate.end_window()
    assert desk.refused(Kind.MESSAGE, adds_turn=True).metadata == {"limit": "accept_wait"}
    for _ in range(REMEMBERED):
        desk.gate.end_window()
    desk.admit_turn().end()


def test_a_call_that_waited_for_its_body_is_at_work_again_if_there_is_room() -> None:
    desk = Desk(limit=2)
    first, second = desk.gate.admit(Kind.MESSAGE), desk.gate.admit(Kind.MESSAGE)
    first.rest()
    third = desk.gate.admit(Kind.MESSAGE)
    with pytest.raises(Overloaded):
        first.resume()
    assert (desk.gate.at_work, desk.gate.waiting) == (2, 1)
    third.end()
    first.resume()
    first.resume()
    assert (desk.gate.at_work, desk.gate.waiting) == (2, 0)
    first.end()
    second.end()
    assert (desk.gate.at_work, desk.gate.waiting) == (0, 0)


class Watcher:
    """Counts what it is called with."""

    def __init__(self) -> None:
        self.waiting = self.ends = 0

    def rests(self, change: int) -> None:
        self.waiting += change

    def ended(self) -> None:
        self.ends += 1


def test_what_watches_a_call_learns_when_it_waits_and_ends() -> None:
    desk = Desk()
    call, watcher = desk.gate.admit(Kind.READ), Watcher()
    call.watcher = watcher
    call.rest()
    call.rest()
    assert watcher.waiting == 1
    call.resume()
    assert watcher.waiting == 0
    call.rest()
    call.end()
    assert (watcher.waiting, watcher.ends) == (0, 1)


def test_a_call_that_is_refused_after_all_costs_others_no_turn() -> None:
    desk = Desk(limit=1000)
    desk.load.rate.end_window(is_overloaded=True, at_work=0)
    for _ in range(5 * BURST):
        call = desk.admit_turn()
        call.withdraw()
        call.end()
    for _ in range(BURST):
        desk.admit_turn().end()
    assert desk.refused(Kind.MESSAGE, adds_turn=True).metadata == {"limit": "turn_rate"}
