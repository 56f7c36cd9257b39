"""What a further watcher costs is compared with what one costs at the floor, each without its own turns."""

import pytest

from tests.bench.measures.watchers import MANY, Delivered, Scene, rows_of


def delivered(events: int, server: float, *, responses: int = 0) -> Delivered:
    return Delivered(events, seconds=1.0, server=server, responses=responses or events)


def test_the_turns_are_taken_off_on_both_sides() -> None:
    results = {
        "subject": [delivered(1000, 0.050, responses=500)],
        "alone": [delivered(10, 0.0203)],
        "F3 live": [delivered(1000, 0.030, responses=400)],
        "F3 live alone": [delivered(10, 0.0003)],
    }
    rows = {row.name: row for row in rows_of(Scene(MANY, 4, 1, paced=True), results)}
    above = rows["watch.100.paced.above"]
    assert above.value == pytest.approx(1e6 * 0.0297 / 990)
    assert above.floor == pytest.approx(1e6 * 0.0297 / 990)
    assert (rows["watch.100.paced.cpu"].value, rows["watch.100.paced.cpu"].floor) == (50.0, 30.0)
    responses = rows["watch.100.paced.responses"]
    assert (responses.value, responses.floor) == (0.5, 0.4)
