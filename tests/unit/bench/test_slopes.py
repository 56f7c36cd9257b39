"""What grows is found by its slope, and what only came and went is not."""

import pytest

from tests.bench.soak.__main__ import table
from tests.bench.soak.slopes import Slope, slope, slopes


def test_a_slope_is_of_100_turns() -> None:
    growth = slope([0, 50, 250], [10.0, 11.0, 15.0])
    assert (growth.first, growth.last) == (10.0, 15.0)
    assert growth.per_100_turns == pytest.approx(2.0)


def test_what_comes_and_goes_has_no_slope() -> None:
    assert slope([0, 100, 200, 300], [5.0, 9.0, 9.0, 5.0]).per_100_turns == pytest.approx(0.0)


def test_one_moment_has_no_slope() -> None:
    assert slope([7, 7], [5.0, 6.0]) == Slope(5.0, 6.0, 0.0)


def _sample(minute: float, turns: int, **values: float) -> dict[str, object]:
    return {"minute": minute, "turns": turns, "values": values}


def test_slopes_are_taken_after_the_beginning() -> None:
    samples = [_sample(0, 0, a=0.0), _sample(3, 100, a=50.0), _sample(4, 200, a=51.0), _sample(5, 300, a=52.0)]
    growth = slopes(samples, after=3)["a"]
    assert growth.first == 50.0
    assert growth.per_100_turns == pytest.approx(1.0)
    assert slopes(samples, after=5)["a"].first == 0.0


def test_a_collection_may_appear_later() -> None:
    samples = [_sample(0, 0, a=1.0), _sample(1, 100, a=1.0, b=3.0), _sample(2, 200, a=1.0, b=4.0)]
    result = slopes(samples, after=0)
    assert result["a"].per_100_turns == pytest.approx(0.0)
    assert result["b"].first == 3.0
    assert result["b"].per_100_turns == pytest.approx(1.0)


def test_the_slope_of_memory_is_in_kib() -> None:
    assert "512.00 KiB" in table({"memory.1": Slope(100.0, 101.0, 0.5)})
    assert table({"documents.events": Slope(1.0, 2.0, 0.5)}).endswith("0.5")
