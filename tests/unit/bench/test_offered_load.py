"""Offered load: what counts as served, as refused, and as recovered."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from tests.bench.jobs.offered import COMPLETED, OK, OPEN, Record, error_name, intended, open_loop
from tests.bench.measures.offered_load import (
    BARE_CANCELLED,
    OUT_OF_PATIENCE,
    Phases,
    Step,
    is_good,
    is_served,
    refusals,
    step_rows,
)

PHASES = Phases(settling=2, counted=4, recovering=8)
REFUSED = "RESOURCE_EXHAUSTED.OVERLOADED:turns.retry"


def _step(
    turns: Sequence[Record] = (), reads: Sequence[Record] = (), *, driving: float = 0.1, others: float = 0.0
) -> Step:
    return Step(PHASES, turns, reads, memory=130.0, leases_lost=0, unfinished=0, use=[1.0, driving], others=others)


def _turns(first: int, last: int, *, took: float = 0.3, end: str = COMPLETED) -> list[Record]:
    """One turn a second."""
    return [(float(at), took, end) for at in range(first, last)]


def test_a_phase_begins_where_the_one_before_it_ends() -> None:
    assert intended([[2, 1], [4, 0.5]]) == [0.0, 0.5, 1.0, 1.25]


@pytest.mark.parametrize(
    ("record", "good"),
    [
        ((0.0, 2.0, COMPLETED), True),
        ((0.0, 2.1, COMPLETED), False),
        ((0.0, 0.1, "FAILED"), False),
        ((0.0, 0.1, REFUSED), False),
        ((0.0, 0.1, OPEN), False),
    ],
)
def test_a_turn_is_good_if_it_is_completed_in_time(record: Record, good: bool) -> None:
    assert is_good(record) is good


def test_a_rate_is_served_if_99_of_100_turns_are_good() -> None:
    assert is_served([*_turns(0, 99), (99.0, 3.0, COMPLETED)])
    assert not is_served([*_turns(0, 98), *_turns(98, 100, took=3.0)])
    assert not is_served([])


def test_goodput_is_of_the_turns_intended_in_the_counted_seconds() -> None:
    step = _step([*_turns(0, 3), *_turns(3, 6, end=REFUSED), *_turns(6, 14)])
    assert step.goodput == 0.25


def test_reads_count_by_those_that_were_answered() -> None:
    reads = [*_turns(0, 2, took=9.0, end=OK), *_turns(2, 5, took=0.1, end=OK), *_turns(5, 6, end="CANCELLED.-.bare")]
    assert (_step(reads=reads).answered, _step(reads=reads).reads_p99_ms) == (0.75, 100.0)
    assert _step(reads=_turns(0, 6, end=OPEN)).reads_p99_ms == 20_000


def test_refusals_are_with_or_without_retry_info_until_the_overload_s_end() -> None:
    turns = [
        *_turns(0, 3, end=REFUSED),
        *_turns(3, 5, end=BARE_CANCELLED),
        *_turns(5, 6, end=OUT_OF_PATIENCE),
        *_turns(6, 14, end=BARE_CANCELLED),
    ]
    ends = _step(turns).ends
    assert (refusals(ends, bare=False), refusals(ends, bare=True), ends[BARE_CANCELLED]) == (3, 2, 2)


@pytest.mark.parametrize(
    ("after", "recovery"),
    [
        (_turns(6, 14), 0.0),
        ([*_turns(6, 9, took=5.0), *_turns(9, 14)], 3.0),
        ([*_turns(6, 12, took=5.0), *_turns(12, 14)], None),
        (_turns(6, 14, end=REFUSED), None),
        ([*_turns(6, 13), (13.0, 5.0, COMPLETED)], None),
    ],
    ids=["at once", "after 3 s", "too short to be sure", "never", "not in the end"],
)
def test_the_service_has_recovered_once_turns_are_served_until_the_end(
    after: list[Record], recovery: float | None
) -> None:
    assert _step([*_turns(0, 6, end=REFUSED), *after]).recovery == recovery


def test_the_rows_of_a_step() -> None:
    rows = {row.name: row for row in step_rows("x", 3, _step(_turns(0, 14)), capacity=2.0, memory_at_capacity=100.0)}
    assert (rows["x.3.goodput"].value, rows["x.3.goodput"].ratio) == (1.0, 0.5)
    assert rows["x.3.memory"].ratio == 1.3
    assert rows["x.3.recovery"].value == 0.0
    assert not rows["x.3.goodput"].void
    void = {row.name for row in step_rows("x", 3, _step(driving=0.9), capacity=2.0, memory_at_capacity=1.0) if row.void}
    assert void == {"x.3.goodput", "x.3.reads.answered", "x.3.reads.p99", "x.3.recovery"}


def test_a_step_does_not_count_while_other_programs_use_the_servers_core() -> None:
    rows = step_rows("x", 3, _step(others=0.12), capacity=2.0, memory_at_capacity=1.0)
    assert rows[0].void == "other programs had 12% of core 0"
    assert not step_rows("x", 3, _step(others=0.09), capacity=2.0, memory_at_capacity=1.0)[0].void


def test_the_rows_name_how_the_turns_ended() -> None:
    step = _step([*_turns(0, 2), *_turns(2, 6, end=REFUSED)])
    rows = {row.name: row.value for row in step_rows("x", 3, step, capacity=2.0, memory_at_capacity=1.0)}
    assert rows[f"x.3.ended.{REFUSED}"] == 4
    assert not [name for name in rows if COMPLETED in name]


def _details(*messages: Message) -> bytes:
    packed = []
    for message in messages:
        packed.append(AnyMessage())
        packed[-1].Pack(message)
    details: bytes = status_pb2.Status(details=packed).SerializeToString()
    return details


def test_an_error_is_named_by_its_status_reason_and_retry_info() -> None:
    info = error_details_pb2.ErrorInfo(reason="OVERLOADED", metadata={"limit": "turns"})
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromTimedelta(timedelta(seconds=1))
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_name(exhausted, _details(info, retry)) == REFUSED
    assert error_name(exhausted, _details(info)) == "RESOURCE_EXHAUSTED.OVERLOADED:turns.bare"
    assert error_name(grpc.StatusCode.CANCELLED, b"") == BARE_CANCELLED


async def test_calls_begin_whatever_the_calls_before_them_do() -> None:
    begun = []

    async def call(number: int) -> str:
        begun.append(number)
        if number == 0:
            await asyncio.Event().wait()
        return "ended"

    done = await open_loop([[1000, 0.01]], call, str.upper, linger=0)
    assert begun == list(range(10))
    assert [end for _, _, end in done["records"]] == [OPEN, *["ENDED"] * 9]
