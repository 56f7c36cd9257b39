"""A profile adds up: all CPU time is charged once."""

import pytest

from tests.bench.profile import Sample, profile_of, text_of

SEND = "send (/x/lib/python3.11/site-packages/pymongo/network.py:1)"
STEP = "step (/x/service/turnkeeper/store/steps.py:1)"
MAIN = "main (/x/service/turnkeeper/__main__.py:1)"
SAMPLES = [
    Sample("MainThread", [STEP, MAIN], 0.020),
    Sample("MainThread", [SEND, STEP, STEP, MAIN], 0.060),
    Sample("pool-1_7", [SEND], 0.010),
    Sample("event_engine", [], 0.010),
]


def test_own_time_and_all_time_of_a_function() -> None:
    profile = profile_of(SAMPLES, turns=10)
    assert profile.total == pytest.approx(10)
    assert profile.own == pytest.approx({STEP: 2, SEND: 7, "no Python (event_engine)": 1})
    assert profile.cumulative == pytest.approx({STEP: 8, SEND: 7, "no Python (event_engine)": 1})
    assert profile.packages == pytest.approx({"turnkeeper/store": 2, "pymongo": 7, "no Python (event_engine)": 1})
    assert profile.threads == pytest.approx({"MainThread": 8, "pool": 1, "event_engine": 1})


def test_the_text_shows_the_largest_first_without_paths() -> None:
    lines = text_of(profile_of(SAMPLES, turns=10), most=1).splitlines()
    assert lines[0] == "10.00 ms of CPU a turn"
    assert "   7.000   70.0%  send (pymongo/network.py:1)" in lines
    assert not [line for line in lines if "/x/" in line]
