"""The limit of calls at work follows the time of commits and the event loop, window by window, and nothing else."""

import pytest

from turnkeeper.admission.limit import (
    AFTER_A_PAUSE,
    DECREASE,
    LATE_LOOP,
    LEAST,
    MOST,
    SLOW_COMMIT,
    TIMES_BEST,
    WINDOWS,
    Limit,
)


def window(limit: Limit, *, commits: float = 0.005, lag: float = 0.0, used: int = 0) -> float:
    """Passes one window, and returns the limit after it."""
    limit.committed(commits)
    limit.late(lag)
    limit.at_work(used)
    limit.end_window()
    return limit.calls


def overloaded() -> Limit:
    """Returns a limit that has come down to LEAST."""
    limit = Limit()
    window(limit)
    for _ in range(200):
        window(limit, commits=1.0, used=100)
    return limit


def test_it_begins_high() -> None:
    assert Limit().calls == MOST


@pytest.mark.parametrize("signs", [{"commits": 2 * SLOW_COMMIT}, {"lag": 2 * LATE_LOOP}])
def test_it_decreases_below_what_was_used_while_commits_are_slow_or_the_loop_is_late(signs: dict[str, float]) -> None:
    limit = Limit()
    window(limit)
    for _ in range(WINDOWS):
        window(limit, used=200, **signs)
    assert limit.calls == pytest.approx(200 * DECREASE)
    assert window(limit, used=200, **signs) == pytest.approx(200 * DECREASE**2)


def test_one_window_is_a_pause_and_no_overload() -> None:
    limit = Limit()
    for _ in range(100):
        window(limit, lag=1.0, used=200)
        window(limit, used=200)
    assert limit.calls == MOST


def test_a_pause_of_a_quiet_server_leaves_room_for_the_next_burst() -> None:
    limit = Limit()
    window(limit)
    for _ in range(WINDOWS):
        window(limit, lag=1.0, used=1)
    assert limit.calls > 0.8 * AFTER_A_PAUSE


def test_it_never_falls_below_the_least() -> None:
    assert overloaded().calls == LEAST


def test_it_grows_again_while_it_is_used() -> None:
    limit = overloaded()
    before = limit.calls
    assert window(limit, used=LEAST) > before
    idle = window(limit, used=0)
    assert window(limit, used=0) == idle, "nothing tells whether more would be too much"


def test_a_far_database_is_no_overload() -> None:
    limit = Limit()
    far = 5 * SLOW_COMMIT
    for _ in range(100):
        window(limit, commits=far, used=200)
        window(limit, commits=far * (TIMES_BEST - 0.1), used=200)
    assert limit.calls == MOST
    for _ in range(WINDOWS):
        window(limit, commits=far * (TIMES_BEST + 0.1), used=200)
    assert limit.calls < MOST


def test_commits_that_take_several_windows_are_signs_in_each_of_them() -> None:
    """The commits of a far database end in groups; between them no commit ends, and all of them are slow."""
    limit = Limit()
    window(limit)
    for number in range(3 * WINDOWS):
        if number % WINDOWS == 0:
            limit.committed(10 * SLOW_COMMIT)
        limit.at_work(200)
        limit.end_window()
    assert limit.has_signs
    limit.end_window()
    assert not limit.has_signs, "without calls there is no overload"


def test_windows_without_commits_change_nothing() -> None:
    limit = overloaded()
    before = limit.calls
    limit.end_window()
    assert limit.calls == before
