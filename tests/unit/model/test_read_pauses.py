"""An answer is read once an interval after its first text, late by at most one interval, and a fast one at once."""

import asyncio
from datetime import timedelta

import pytest

from tests.unit.engine.simulation.virtual_loop import Clock, VirtualLoop
from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.collected import FULL_READ
from turnkeeper.model.contract import ModelAnswer, ModelFailure, ModelRequest
from turnkeeper.model.deadline_watch import Deadlines, DeadlineWatch
from turnkeeper.model.openai_stream import read_text
from turnkeeper.model.read_pauses import ReadPauses

INTERVAL = 0.04
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def chunk(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % text.encode()


class Caller:
    """Shows text once an interval, as a preview does, and has patience until then."""

    def __init__(self, now: "Reading", interval: float) -> None:
        self._reading = now
        self._interval = interval
        self._shown_at = -1.0

    def show(self) -> None:
        if self.patience() <= 0:
            self._shown_at = self._reading.loop.time()

    def patience(self) -> float:
        return max(0.0, self._shown_at + self._interval - self._reading.loop.time()) if self._interval else 0.0


class Reading:
    """One call to a model in virtual time: what its server sends, by milliseconds, and what is read when."""

    def __init__(self, sent: list[tuple[int, bytes]], *, interval: float = INTERVAL, **deadlines: float) -> None:
        self._clock = Clock()
        self._begin = self._clock.now
        self.loop = VirtualLoop(self._clock)
        self._sent = list(sent)
        self._held = b""
        self.reads: list[int] = []
        """When the reader found something."""
        self.texts: list[tuple[int, str]] = []
        self.answer: ModelAnswer | None = None
        self.failure: ModelFailure | None = None
        self.ended_at = -1
        self._caller = Caller(self, interval)
        self._deadlines = Deadlines(**{name: timedelta(seconds=value) for name, value in deadlines.items()})
        task = self.loop.create_task(self._read())
        self.loop.settle()
        for _ in range(3000):
            if task.done():
                break
            self._clock.now += timedelta(milliseconds=1)
            self.loop.settle()
        self.loop.run_until_complete(task)
        self.loop.close()

    @property
    def now(self) -> int:
        return round((self._clock.now - self._begin) / timedelta(milliseconds=1))

    def collected(self) -> bytes:
        """Returns what has arrived, as a connection does."""
        while self._sent and self._sent[0][0] <= self.now:
            self._held += self._sent.pop(0)[1]
        data, self._held = self._held[:FULL_READ], self._held[FULL_READ:]
        if data:
            self.reads.append(self.now)
        return data

    async def read(self) -> bytes | None:
        """Waits until something arrives."""
        if self._sent and not self._held:
            await asyncio.sleep(max(0, self._sent[0][0] - self.now) / 1000)
        return self.collected() or None

    def hold(self) -> None:
        """Does nothing: there is no connection."""

    def release(self) -> bool:
        return False

    async def _read(self) -> None:
        reader = AnswerReader(ModelRequest(model="m", messages=()), max_answer_bytes=1 << 20)
        watch = DeadlineWatch(self._deadlines, loop=self.loop)
        pauses = ReadPauses(self._caller.patience, now=self.loop.time)
        try:
            with watch:
                async for text in read_text(self, reader, watch, pauses):
                    self._caller.show()
                    self.texts.append((self.now, text))
            self.answer = reader.answer()
        except ModelFailure as failed:
            self.failure = failed
        self.ended_at = self.now


def paced(count: int, *, apart: int, first: int = 50) -> list[tuple[int, bytes]]:
    return [(first + number * apart, chunk(f"{number},")) for number in range(count)]


def test_the_first_text_is_read_at_once_and_the_rest_once_an_interval() -> None:
    sent = paced(100, apart=20)
    reading = Reading([*sent, (sent[-1][0] + 1, FINISH)])
    assert reading.answer is not None
    assert reading.answer.text == "".join(text for _, text in reading.texts) == "".join(f"{n}," for n in range(100))
    assert reading.texts[0][0] == 50
    whole = 99 * 20
    assert len(reading.reads) <= whole / 40 + 6
    assert reading.ended_at <= 50 + whole + 1 + 40


def test_a_chunk_is_late_by_one_interval_at_most() -> None:
    sent = paced(200, apart=7)
    reading = Reading([*sent, (sent[-1][0], FINISH)])
    came = [at for at, text in reading.texts for _ in range(text.count(","))]
    assert len(came) == len(sent)
    assert max(at - meant for at, (meant, _) in zip(came, sent, strict=True)) <= 40


def test_a_role_and_a_comment_delay_no_first_text() -> None:
    role = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    reading = Reading([(10, role), (12, b": still here\n\n"), (15, chunk("a")), (16, FINISH)])
    assert reading.texts == [(15, "a")]


def test_a_short_answer_is_read_soon_after_its_end() -> None:
    reading = Reading([*paced(32, apart=0), (51, chunk("!")), (52, FINISH)])
    assert reading.ended_at <= 55


def test_without_an_interval_every_chunk_is_read_as_it_comes() -> None:
    sent = paced(20, apart=3)
    reading = Reading([*sent, (200, FINISH)], interval=0)
    assert [at for at, _ in reading.texts] == [at for at, _ in sent]
    assert reading.ended_at == 200


def test_a_fast_server_is_never_left_waiting() -> None:
    large = chunk("x").replace(b"{", b'{"padding":"%s",' % (b"p" * 2 * FULL_READ), 1)
    sent = [(50, chunk("a")), *((51 + number, large) for number in range(30)), (81, FINISH)]
    reading = Reading(sent)
    assert reading.answer is not None
    assert reading.answer.text == "a" + 30 * "x"
    assert reading.ended_at <= 81 + 5
    assert len({at for at in reading.reads if at > 56}) >= 25, "as it comes"


@pytest.mark.parametrize("interval", [0, INTERVAL, 0.5])
def test_the_time_between_tokens_is_that_of_the_server_and_not_of_the_pauses(interval: float) -> None:
    sent = [(50, chunk("a")), (54, chunk("b")), (110, chunk("c"))]
    reading = Reading([*sent, (1_000, FINISH)], interval=interval, between_tokens=0.2)
    assert reading.failure is not None
    assert reading.failure.detail.metadata["reason"] == "STALL_TIMEOUT"
    assert "".join(text for _, text in reading.texts) == "abc"
    assert 310 <= reading.ended_at <= 310 + 1000 * min(interval, 0.2) + 1
    slow = [(50 + 190 * number, chunk("a")) for number in range(5)]
    assert Reading([*slow, (900, FINISH)], interval=interval, between_tokens=0.2).failure is None


def test_what_has_arrived_before_a_deadline_is_read() -> None:
    sent = paced(40, apart=10)
    reading = Reading([*sent, (445, FINISH)], interval=0.3, total=0.45)
    assert reading.answer is not None
    late = Reading([*sent, (600, FINISH)], interval=0.3, total=0.45)
    assert late.failure is not None
    assert late.failure.detail.metadata["reason"] == "TOTAL_TIMEOUT"
