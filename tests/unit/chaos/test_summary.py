"""How long lost turns took to go on, as the summary of a run has it."""

import pytest

from tests.chaos.history import Fault
from tests.chaos.summary import summary
from tests.unit.chaos.runs import SESSION, Run, clean

LAST, TAKEN = 100.0, 112.0
"""When a client received the last event of the lost owner, and the first one of the new owner."""


def a_fault(kind: str, target: str, *, began: float, healed: float) -> Fault:
    return Fault(kind=kind, target=target, began=began, healed=healed)


CUT = a_fault("database-cut", "server-0, server-1", began=100.5, healed=100.6)
"""It loses no owner."""
KILL = a_fault("server-kill", "server-0", began=101.0, healed=103.0)


def taken_over() -> tuple[Run, int, int]:
    """Returns a run, the number of the lost owner's last event, and that of the new owner's first."""
    run = clean()
    superseded = run.find("attempt_superseded")
    earlier = max(
        event.sequence
        for event, _ in run.events
        if event.turn_id == superseded.turn_id and event.sequence < superseded.sequence
    )
    return run, earlier, superseded.sequence


@pytest.mark.parametrize(
    ("gaps", "seconds"),
    [
        ([], 11.0),
        ([(102.0, 108.0)], 4.0),
        ([(102.0, 112.9)], 0.0),  # seen late: the new owner's event was stored, so the gap was over
        ([(102.0, 113.5)], 11.0),  # too late for that: it is another fault's
        ([(90.0, 99.0)], 11.0),
    ],
)
def test_a_takeover_is_measured_from_the_loss_or_from_the_end_of_a_gap_without_writes(
    gaps: list[tuple[float, float]], seconds: float
) -> None:
    run, earlier, superseded = taken_over()
    run.first_seen = {(SESSION, earlier): LAST, (SESSION, superseded): TAKEN}
    run.faults = [KILL, CUT, *(a_fault("unwritable", "majority", began=began, healed=end) for began, end in gaps)]
    assert summary(run.history(), {})["takeover_seconds"] == {"p50": seconds, "p99": seconds}


@pytest.mark.parametrize("place", [0, 1])
def test_a_takeover_that_no_reader_saw_is_not_measured(place: int) -> None:
    run, *numbers = taken_over()
    run.first_seen = {(SESSION, numbers[place]): TAKEN}
    run.faults = [KILL]
    report = summary(run.history(), {})
    assert (report["takeovers"], report["takeover_seconds"]) == (1, {})
