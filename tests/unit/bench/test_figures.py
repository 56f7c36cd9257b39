"""The bench's report: medians, ratios, and which goals are missed."""

from pathlib import Path

import orjson
import pytest

from tests.bench import report
from tests.bench.figures import Goal, Invalid, row, row_json
from tests.bench.measures import MEASURES
from tests.bench.results import markdown

GOALS = {
    "cheap": Goal(0.6, of="ratio"),
    "quick": Goal(5.0, of="value"),
    "many": Goal(5.0, of="ratio", at_most=False),
}


def test_a_row_is_the_median_of_its_rounds_beside_the_median_of_its_floor() -> None:
    figure = row("cheap", "a turn", [9.0, 2.0, 3.0], unit="ms", floor=[1.0, 4.0, 100.0])
    assert (figure.value, figure.spread, figure.floor, figure.ratio) == (3.0, (2.0, 9.0), 4.0, 0.75)


@pytest.mark.parametrize(
    ("name", "value", "floor", "met"),
    [
        ("cheap", 6.0, 10.0, True),
        ("cheap", 6.1, 10.0, False),
        ("cheap", 0.1, None, False),
        ("quick", 5.0, None, True),
        ("quick", 5.1, None, False),
        ("many", 50.0, 10.0, True),
        ("many", 49.0, 10.0, False),
        ("other", 1e9, 1.0, None),
    ],
)
def test_a_goal_is_met_or_missed(name: str, value: float, floor: float | None, met: bool | None) -> None:
    figure = row(name, "", [value], unit="ms", floor=floor)
    assert figure.met(GOALS.get(name)) is met
    assert report.missed([figure], GOALS) == ([name] if met is False else [])


def test_missed_goals_are_reported_by_name() -> None:
    rows = [row("cheap", "", [7.0], unit="ms", floor=10.0), row("quick", "", [4.0], unit="ms")]
    assert report.goals_summary(rows, GOALS) == "goals met: 1 of 2; missed: cheap"
    assert "MISSED" in report.table(rows, GOALS).splitlines()[1]
    assert report.goals_summary(rows[1:], GOALS) == "goals met: 1 of 1; missed: none"


def test_the_file_is_a_list_of_rows(tmp_path: Path) -> None:
    rows = [row("cheap", "a turn", [7.0, 8.0], unit="ms", floor=10.0), row("other", "", [1.0], unit="")]
    report.write(rows, GOALS, tmp_path / "new" / "bench.json")
    first, second = orjson.loads((tmp_path / "new" / "bench.json").read_bytes())
    assert first == {
        "name": "cheap",
        "about": "a turn",
        "value": 7.5,
        "unit": "ms",
        "spread": [7.0, 8.0],
        "rounds": 2,
        "floor": 10.0,
        "ratio": 0.75,
        "goal": "≤ 0.6 x",
        "met": False,
        "void": "",
    }
    assert (second["floor"], second["ratio"], second["goal"], second["met"]) == (None, None, None, None)


def test_nothing_measured_is_no_row() -> None:
    with pytest.raises(Invalid):
        row("cheap", "", [], unit="ms")


def test_runs_stand_side_by_side() -> None:
    first = row_json(row("cheap", "a turn", [7.0], unit="ms", floor=10.0), GOALS["cheap"])
    second = row_json(row("cheap", "a turn", [5.0], unit="ms", floor=10.0), GOALS["cheap"])
    line = markdown([{"cheap": first}, {"cheap": second}]).splitlines()[2]
    assert line == "| `cheap`: a turn | 7 ms (0.70 x 10) | 5 ms (0.50 x 10) | 5 … 5 | ≤ 0.6 x | **no**, yes |"


def test_each_measure_has_a_name_of_its_own() -> None:
    names = [measure.name for measure in MEASURES]
    assert len(names) == len(set(names))
