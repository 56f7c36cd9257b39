"""Answers that are defects of the service, and ends of connections that are none; each added to a clean run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tests.unit.chaos.runs import Run

_REQUEST: Final = {"request": "r-9", "text": "say u-9: broken"}
_RAISED: Final = "Unexpected <class 'KeyError'>: 'tenant'"


def a_call_met_a_defect(run: Run) -> None:
    run.tried("SendMessage", _REQUEST, status="INTERNAL", reason="INTERNAL_ERROR", message="The service met a defect.")


def a_call_raised_out_of_the_service(run: Run) -> None:
    run.tried("GetTurn", {}, status="UNKNOWN", message=_RAISED)


def a_stream_was_not_begun_because_of_a_defect(run: Run) -> None:
    run.tried("StreamMessage", _REQUEST, status="NOT_INTERNAL", reason="INTERNAL_ERROR")


def a_stream_ended_with_a_defect(run: Run) -> None:
    run.chains[0] = replace(run.chains[0], ends=[("CUT", ""), ("INTERNAL INTERNAL_ERROR", "The service met a defect.")])


def a_stream_raised_out_of_the_service(run: Run) -> None:
    run.chains[0] = replace(run.chains[0], ends=[("UNKNOWN", _RAISED)])


DEFECTS: Final[tuple[Callable[[Run], None], ...]] = (
    a_call_met_a_defect,
    a_call_raised_out_of_the_service,
    a_stream_was_not_begun_because_of_a_defect,
    a_stream_ended_with_a_defect,
    a_stream_raised_out_of_the_service,
)


def connections_broke(run: Run) -> None:
    """Adds what clients see of killed servers and cut connections."""
    run.tried("GetTurn", {}, status="UNKNOWN", message="Stream removed")
    run.tried("GetTurn", {}, status="INTERNAL", message="Received RST_STREAM with error code 2")
    ends = [("UNAVAILABLE", ""), ("INTERNAL", "RST_STREAM closed stream"), ("OK", "")]
    run.chains[0] = replace(run.chains[0], ends=ends)


def a_call_was_refused_without_a_time_to_come_back(run: Run) -> None:
    request = {"request": "r-9", "text": "say u-9: too much"}
    run.tried("SendMessage", request, status="RESOURCE_EXHAUSTED", reason="OVERLOADED", retry=700)
    run.tried("SendMessage", request, status="RESOURCE_EXHAUSTED", reason="OVERLOADED")


def a_stream_was_refused_by_grpc_itself(run: Run) -> None:
    run.tried("StreamMessage", {"request": "r-9", "text": "say u-9: too much"}, status="NOT_RESOURCE_EXHAUSTED")
