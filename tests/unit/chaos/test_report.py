"""When a run has passed, and why it has failed."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from tests.chaos.report import LEAST, Run, report, table

KINDS = [f"kind-{number}" for number in range(9)]
GOOD: Mapping[str, Any] = {
    "acks": 900,
    "acknowledged_turns": 300,
    "decided_approvals": 100,
    "takeovers": 50,
    "foreign_reads": 100,
    "effects_of_tool_servers": 100,
    "next_messages": 20,
    "takeover_seconds": {"p50": 6.0, "p99": 15.0},
    "violations": {},
    "violations_by_promise": {"I1": 0},
    "not_checked": [],
}


def _run(*, minutes: float = 5, **changes: Any) -> dict[str, Any]:
    faults = {kind: {"tried": 13, "confirmed": 12} for kind in KINDS}
    faults.update(changes.pop("faults", {}))
    run = Run(seed=1, minutes=minutes, lease=5, kinds=KINDS)
    return report(run, faults=faults, checked={**GOOD, **changes}, trouble=changes.pop("trouble", []))


def test_a_run_with_enough_figures_and_no_violation_passes() -> None:
    result = _run()
    assert (result["passed"], result["failures"], result["scaled"]) == (True, [], False)
    assert result["faults"] == 9 * 12
    assert result["kinds"] == 9


def test_one_violation_fails_the_run_and_is_reported() -> None:
    result = _run(violations={"I3": ["turn t-1 is gone"], "I1": []})
    assert result["failures"] == ["I3: 1 violations, such as: turn t-1 is gone"]
    assert not result["passed"]


@pytest.mark.parametrize(
    "name",
    [
        "acknowledged_turns",
        "decided_approvals",
        "takeovers",
        "foreign_reads",
        "effects_of_tool_servers",
        "next_messages",
    ],
)
def test_one_less_than_demanded_fails_the_run(name: str) -> None:
    assert _run(**{name: LEAST[name] - 1})["failures"] == [
        f"{name} is {LEAST[name] - 1}; at least {LEAST[name]} are needed"
    ]


def test_missing_figures_fail_the_run() -> None:
    run = Run(seed=1, minutes=5, lease=5, kinds=[])
    result = report(run, faults={}, checked={}, trouble=["the checker could not check"])
    assert result["failures"][0] == "the checker could not check"
    assert len(result["failures"]) == 1 + len(LEAST)


def test_only_confirmed_faults_count() -> None:
    result = _run(faults={kind: {"tried": 100, "confirmed": 11} for kind in KINDS})
    assert result["failures"] == ["faults is 99; at least 100 are needed"]


def test_a_kind_that_never_took_effect_fails_the_run() -> None:
    faults = {"kind-0": {"tried": 9, "confirmed": 0}, "kind-1": {"tried": 50, "confirmed": 50}}
    assert _run(faults=faults)["failures"] == ["kind-0 never took effect, tried 9 times"]


def test_a_kind_that_was_not_tried_fails_a_full_run_and_is_shown_in_a_short_one() -> None:
    """A lane has each kind once in a round: a short run may end before the round does."""
    faults = {"kind-0": {"tried": 0, "confirmed": 0}, "kind-1": {"tried": 50, "confirmed": 50}}
    assert _run(faults=faults)["failures"] == ["kind-0 was never tried"]
    short = _run(faults=faults, minutes=4.9)
    assert short["passed"]
    assert re.search(r"kind-0 +0 +0\n", table(short))
    tried = {**faults, "kind-0": {"tried": 1, "confirmed": 0}}
    assert _run(faults=tried, minutes=4.9)["failures"] == ["kind-0 never took effect, tried 1 times"]


def test_a_kind_without_any_strike_is_in_the_table() -> None:
    faults = {"chosen": {"tried": 200, "confirmed": 200}}
    run = Run(seed=1, minutes=1, lease=5, kinds=["chosen", "absent"])
    result = report(run, faults=faults, checked=GOOD, trouble=[])
    assert result["faults_by_kind"] == {"absent": {"tried": 0, "confirmed": 0}, **faults}


def test_a_promise_without_a_check_fails_the_run() -> None:
    assert _run(not_checked=["I7"])["failures"] == ["I7: not checked"]


def test_slow_takeovers_fail_the_run() -> None:
    result = _run(takeover_seconds={"p50": 6.0, "p99": 15.1})
    assert result["failures"] == ["take-over p99 is 15.1 s; the limit is 15 s"]


def test_a_shorter_run_needs_its_share_and_reports_that() -> None:
    result = _run(minutes=1, acknowledged_turns=60, decided_approvals=20, takeovers=10)
    assert result["passed"]
    assert result["scaled"]
    assert result["least"] == {
        "acknowledged_turns": 60,
        "decided_approvals": 20,
        "takeovers": 10,
        "faults": 20,
        "foreign_reads": 20,
        "effects_of_tool_servers": 20,
        "next_messages": 4,
    }
    assert "scaled to the shorter run" in table(result)
    assert not _run(minutes=1, takeovers=9)["passed"]


def test_a_longer_run_needs_as_much_as_a_full_one() -> None:
    assert _run(minutes=60)["passed"]


def test_the_table_shows_faults_figures_and_failures() -> None:
    shown = table(_run(takeovers=3))
    assert "kind-3" in shown
    assert "p50 6.0, p99 15.0" in shown
    assert "FAILED: takeovers is 3; at least 50 are needed" in shown
    assert shown.endswith("seed 1, 5 min: FAILED")
