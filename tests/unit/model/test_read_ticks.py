"""The pauses of many answers end together, and none after it was given up."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.unit.engine.simulation.virtual_loop import Clock, VirtualLoop
from turnkeeper.model.read_ticks import READ_AT_ONCE, ReadTicks


class Stage:
    """Pauses in virtual time, and what became of them, in order."""

    def __init__(self) -> None:
        self._clock = Clock()
        self.loop = VirtualLoop(self._clock)
        self.ticks = ReadTicks()
        self.happened: list[str] = []

    def add(self, pause: "Pause", seconds: float) -> None:
        self.loop.call_soon(lambda: setattr(pause, "at", self.ticks.add(pause, seconds)))
        self.loop.settle()

    def pass_by(self, milliseconds: int) -> None:
        self._clock.now += timedelta(milliseconds=milliseconds)
        self.loop.settle()


class Pause:
    """A pause whose answer has something in the system, or nothing."""

    at = 0

    def __init__(self, stage: Stage, name: str, *, holds: bool = True) -> None:
        self._stage = stage
        self._name = name
        self._holds = holds

    def release(self) -> bool:
        self._stage.happened.append(f"{self._name} released")
        asyncio.get_running_loop().call_soon(self._stage.happened.append, f"look for {self._name}")
        return self._holds

    def read(self) -> None:
        self._stage.happened.append(f"{self._name} read")


@pytest.fixture(name="stage")
def a_stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.loop.close()


def test_all_answers_are_released_before_the_loop_looks_and_read_afterwards(stage: Stage) -> None:
    for name in ("a", "b"):
        stage.add(Pause(stage, name), 0.04)
    stage.pass_by(39)
    assert not stage.happened
    stage.pass_by(1)
    assert stage.happened == ["a released", "b released", "look for a", "look for b", "a read", "b read"]


def test_an_answer_that_held_nothing_is_read_at_once(stage: Stage) -> None:
    stage.add(Pause(stage, "a", holds=False), 0.01)
    stage.pass_by(10)
    assert stage.happened == ["a released", "a read", "look for a"]


def test_a_pause_that_was_given_up_disturbs_no_other(stage: Stage) -> None:
    gone, staying = Pause(stage, "gone"), Pause(stage, "staying")
    stage.add(gone, 0.02)
    stage.add(staying, 0.02)
    stage.ticks.remove(gone, gone.at)
    stage.pass_by(20)
    assert [line for line in stage.happened if "gone" in line] == []
    assert stage.happened[-1] == "staying read"
    stage.ticks.remove(staying, staying.at)


def test_pauses_of_different_lengths_end_each_at_its_time(stage: Stage) -> None:
    stage.add(Pause(stage, "late"), 0.03)
    stage.add(Pause(stage, "early"), 0.0101)
    stage.pass_by(10)
    assert not stage.happened
    stage.pass_by(1)
    assert stage.happened[-1] == "early read"
    stage.pass_by(19)
    assert stage.happened[-1] == "late read"


def test_so_many_answers_are_read_before_the_loop_has_its_turn(stage: Stage) -> None:
    class First(Pause):
        def read(self) -> None:
            super().read()
            asyncio.get_running_loop().call_soon(stage.happened.append, "something else")

    count = 2 * READ_AT_ONCE + 1
    for pause in (First(stage, "0"), *(Pause(stage, str(number)) for number in range(1, count))):
        stage.add(pause, 0.04)
    stage.pass_by(40)
    after = stage.happened[stage.happened.index("0 read") :]
    assert after.index("something else") == READ_AT_ONCE
    assert [line for line in after if line.endswith("read")] == [f"{number} read" for number in range(count)]
