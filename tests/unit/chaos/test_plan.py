"""What the nemesis will do is decided by the seed alone."""

from itertools import islice

import pytest

from tests.chaos.faults.kinds import KINDS, chosen
from tests.chaos.plan import PAUSES, Lane, Planned, planned

NAMES = ["a", "b", "c", "d", "e"]


def _first(count: int, *, seed: int, kinds: list[str] | None = None) -> list[Planned]:
    return list(islice(planned(Lane.WIRE, kinds or NAMES, seed=seed), count))


def test_the_same_seed_gives_the_same_faults_with_the_same_draws() -> None:
    once, again = _first(40, seed=7), _first(40, seed=7)
    assert once == again
    assert [fault.rng.random() for fault in once] == [fault.rng.random() for fault in again]


def test_the_order_in_which_kinds_are_named_changes_nothing() -> None:
    assert _first(20, seed=7) == _first(20, seed=7, kinds=NAMES[::-1])


def test_another_seed_or_lane_gives_other_faults() -> None:
    kinds = [fault.kind for fault in _first(20, seed=7)]
    assert kinds != [fault.kind for fault in _first(20, seed=8)]
    assert kinds != [fault.kind for fault in islice(planned(Lane.DATABASE, NAMES, seed=7), 20)]


def test_every_kind_comes_in_every_round() -> None:
    kinds = [fault.kind for fault in _first(20, seed=3)]
    rounds = [kinds[at : at + len(NAMES)] for at in range(0, 20, len(NAMES))]
    assert [sorted(kinds_of_round) for kinds_of_round in rounds] == [NAMES] * 4


def test_turns_have_time_between_faults() -> None:
    least, most = PAUSES[Lane.WIRE]
    assert all(least <= fault.pause <= most for fault in _first(50, seed=1))


def test_each_fault_draws_for_itself() -> None:
    first, second = _first(2, seed=1)
    assert first.rng.random() != second.rng.random()


def test_a_lane_without_kinds_does_nothing() -> None:
    assert not list(planned(Lane.SERVERS, [], seed=1))


def test_every_lane_has_kinds() -> None:
    assert {kind.lane for kind in KINDS.values()} == set(Lane)


def test_kinds_are_chosen_by_name_and_left_out_by_name() -> None:
    assert chosen(only=None, without=set()) == list(KINDS)
    assert chosen(only={"server-kill", "no-majority"}, without={"no-majority"}) == ["server-kill"]


def test_without_clock_no_kind_needs_libfaketime() -> None:
    left = chosen(only=None, without={"clock"})
    assert left == [name for name in KINDS if not KINDS[name].clock]
    assert len(left) == len(KINDS) - 2


@pytest.mark.parametrize("names", [{"server-kil"}, {"clocks"}])
def test_a_kind_that_does_not_exist_is_refused(names: set[str]) -> None:
    with pytest.raises(ValueError, match=r"no such kind of fault: (server-kil|clocks); there are server-kill"):
        chosen(only=None, without=names)
