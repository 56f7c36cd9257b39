"""Text after the first part goes to `show`, in its order; whatever else comes is read by the answer's own task."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import orjson
import pytest

from tests.model_servers.streams import chunk
from tests.unit.model.reading import REQUEST
from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.contract import ModelFailure
from turnkeeper.model.deadline_watch import Deadlines, DeadlineWatch
from turnkeeper.model.openai_stream import read_text
from turnkeeper.model.read_pauses import ReadPauses

DONE = b"data: " + orjson.dumps(chunk("stop")) + b"\n\ndata: [DONE]\n\n"


def text(content: str) -> bytes:
    return b"data: " + orjson.dumps(chunk(content=content)) + b"\n\n"


class Body:
    """Has one more part each time it is read; after the last one it is silent, or ends."""

    def __init__(self, *parts: bytes, silent: bool = False) -> None:
        self._parts = list(parts)
        self._silent = silent

    def collected(self) -> bytes:
        return self._parts.pop(0) if self._parts else b""

    async def read(self) -> bytes | None:
        if not self._parts and self._silent:
            await asyncio.Event().wait()
        return self.collected() or None

    def hold(self) -> None:
        """Does nothing: there is no connection."""

    def release(self) -> bool:
        return False


class Reading:
    """One answer that is read: what was yielded, and what was shown."""

    def __init__(self, body: Body, *, between_tokens: float = 30.0, shown_at_most: int = 1000) -> None:
        self.yielded: list[str] = []
        self.shown: list[str] = []
        self.all: list[str] = []
        self._body = body
        self._between = timedelta(seconds=between_tokens)
        self._most = shown_at_most

    def show(self, part: str) -> bool:
        self.shown.append(part)
        self.all.append(part)
        return len(self.shown) < self._most

    async def run(self, *, patience: Callable[[], float] = lambda: 0.001) -> str:
        """Returns the text of the answer."""
        reader = AnswerReader(REQUEST, max_answer_bytes=200 * 1024)
        loop = asyncio.get_running_loop()
        pauses = ReadPauses(patience, now=loop.time)
        with (watch := DeadlineWatch(Deadlines(between_tokens=self._between), loop=loop)):
            async for part in read_text(self._body, reader, watch, pauses, show=self.show):
                self.yielded.append(part)
                self.all.append(part)
        return reader.answer().text


async def test_the_first_part_is_yielded_and_further_ones_are_shown() -> None:
    reading = Reading(Body(text("a"), text("b") + text("é"), text("c") + DONE))
    assert await reading.run() == "abéc"
    assert (reading.yielded, reading.shown) == (["a"], ["bé", "c"])


async def test_parts_that_are_no_whole_events_are_yielded_between_those_that_are_shown() -> None:
    half = text("c")
    parts = (text("a"), text("b"), half[:30], half[30:], text("d"), b": a comment\n\n", text("e"), DONE)
    reading = Reading(Body(*parts))
    assert await reading.run() == "abcde"
    assert "".join(reading.all) == "abcde"
    assert "c" in reading.yielded
    assert {"b", "d", "e"} <= set(reading.shown)


async def test_text_before_a_reported_failure_is_given_and_then_the_failure() -> None:
    error = b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n'
    reading = Reading(Body(text("a"), text("b"), text("c") + error, silent=True))
    with pytest.raises(ModelFailure):
        await reading.run()
    assert "".join(reading.all) == "abc"


async def test_no_more_is_shown_once_no_more_is_wanted() -> None:
    parts = [text(letter) for letter in "abcdef"]
    reading = Reading(Body(*parts, DONE), shown_at_most=2)
    assert await reading.run() == "abcdef"
    assert "".join(reading.all) == "abcdef"
    assert reading.yielded[1:], "after a refusal the answer's own task goes on, which notices that it is not awaited"


async def test_a_silent_server_meets_its_deadline_after_shown_text() -> None:
    reading = Reading(Body(text("a"), text("b"), silent=True), between_tokens=0.05)
    with pytest.raises(ModelFailure) as failed:
        await reading.run()
    assert failed.value.detail.metadata["reason"] == "STALL_TIMEOUT"
    assert "".join(reading.all) == "ab"


async def test_a_cancelled_reading_shows_nothing_more() -> None:
    begun = asyncio.Event()

    def patience() -> float:
        begun.set()
        return 0.005

    reading = Reading(Body(text("a"), text("b"), text("c") + DONE))
    task = asyncio.create_task(reading.run(patience=patience))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    passed = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.02, passed.set_result, None)  # timers of earlier times come first
    await passed
    assert reading.all == ["a"]


async def test_a_defect_of_the_reader_of_the_text_ends_the_reading() -> None:
    class Defect(Reading):
        def show(self, part: str) -> bool:
            raise LookupError(part)

    with pytest.raises(LookupError):
        await Defect(Body(text("a"), text("b"), DONE)).run()
