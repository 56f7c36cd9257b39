"""The arithmetic of the measures."""

import asyncio
import sys
from typing import ClassVar

import pytest

from tests.bench.__main__ import chosen_measures
from tests.bench.bench import Bench, Scale
from tests.bench.jobs.watch import Audience, Watcher
from tests.bench.measures import MEASURES, growth, idle, latency


def test_the_cost_of_the_bytes_is_taken_off_a_late_turn_and_no_more() -> None:
    cost, sending, asking = {1: 5.0, 10: 5.5, 1000: 9.0}, {1: 1.0, 10: 1.5, 1000: 3.0}, {1: 2.0, 10: 2.5, 1000: 8.0}
    rows = {row.name: row for row in growth.rows_of(1000, cost, sending, asking)}
    assert (rows["growth.1000"].value, rows["growth.1000"].floor) == (9.0 - 2.0, 5.5 - 0.5)
    assert (rows["growth.1000.all"].value, rows["growth.1000.all"].floor) == (9.0, 5.5)


@pytest.mark.parametrize("turn", growth.TURNS_MEASURED)
def test_a_turn_is_in_the_middle_of_its_window(turn: int) -> None:
    count = growth.WINDOW // growth.TURNS_MEASURED[turn]
    first = growth.first(turn, count)
    assert first <= turn <= first + count - 1 <= 1000
    assert turn in (1, 1000) or abs(turn - (first + (count - 1) / 2)) <= 0.5


def test_percentiles_are_of_each_round() -> None:
    rounds = [{"there": [float(number) for number in range(1, 101)]}, {"there": [7.0] * 100}, {"there": [1.0] * 100}]
    rows = {row.name: row.value for row in latency.percentiles("deliver", rounds, {"there": "to another"})}
    assert rows == {"deliver.there.p50": 7.0, "deliver.there.p99": 7.0}


HOLDER = """
import mmap, sys
kept = []
for line in sys.stdin:
    for _ in range(int(line)):
        kept.append(mmap.mmap(-1, 64 * 1024))
        kept[-1].write(b"x" * 64 * 1024)
    print(len(kept), flush=True)
"""
"""Holds 64 KiB more for each item; a process of its own, so that no memory that others gave back is used again."""


async def test_memory_is_the_growth_for_each_further_item() -> None:
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-c", HOLDER), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    held = []

    class Measured:
        pids: ClassVar = [holder.pid]

    async def more(_start: int, count: int) -> None:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"%d\n" % count)
        held.append(int(await holder.stdout.readline()))

    bench = Bench(None, Scale(quick=True), lambda _: None)  # type: ignore[arg-type]  # no parts are needed
    grown = await idle.growth(bench, Measured(), more, counts=idle.QUICK)
    await holder.communicate(b"")
    assert grown == pytest.approx(64, rel=0.1)
    assert held == [idle.QUICK[0], sum(idle.QUICK)]


def test_a_watcher_s_recording_is_split_by_turns() -> None:
    audience, watcher = Audience(), Watcher(None)
    audience.began = [10.0, 20.0]
    watcher.responses, watcher.times = [b"a", b"b", b"c"], [10.5, 19.5, 20.25]
    recorded = audience.recording(watcher)
    assert b'"turns":[[[0.5,"YQ=="],[9.5,"Yg=="]],[[0.25,"Yw=="]]]' in recorded


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("turns-1", ["turns-1"]),
        ("turns-", ["turns-1", "turns-16", "turns-64"]),
        ("replay,turns-16", ["turns-16", "replay"]),
        ("nothing", []),
    ],
)
def test_measures_are_chosen_by_name_or_by_a_part_of_it(only: str, names: list[str]) -> None:
    assert [measure.name for measure in chosen_measures(only)] == names


def test_without_a_choice_everything_is_measured() -> None:
    assert chosen_measures("") == list(MEASURES)
