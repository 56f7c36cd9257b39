"""Deltas come once an interval, with the exact text at any interval, here, on another replica, and after a resume."""

import asyncio
import copy
import time
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests import harness
from tests.e2e.support.environment import Environment, client_of
from tests.e2e.support.stream_reader import Reader, stream, watch
from tests.harness import Stubs
from turnkeeper.pb.v1 import chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

STORY = "Я 海🙂é: ß." * 8
SCRIPT = f"""
[[reply]]
match = "story"
text = "{STORY}"
chunk = 1
delay = "8ms"

[[reply]]
match = "burst"
text = "{STORY}"
chunk = 1
"""
DEFAULT = 0.04


class Counted:
    """A reader, and when responses with deltas came."""

    def __init__(self) -> None:
        self.reader = Reader(whole=False)
        self.came: list[float] = []
        self._deltas = 0

    def note(self) -> None:
        if len(self.reader.deltas) > self._deltas:
            self._deltas = len(self.reader.deltas)
            self.came.append(time.monotonic())

    def check(self, interval: float) -> None:
        """Checks the text, and that the responses are no more than one an interval, the first and the last."""
        (message,) = self.reader.completed()
        assert self.reader.text(message.message_completed.message_id) == self.reader.screen() == STORY
        assert self.reader.restarts == 0
        assert len(self.came) <= (self.came[-1] - self.came[0]) / interval + 2


async def _watched(stubs: Stubs, session: str, counted: Counted, interval: float | None) -> None:
    fields: dict[str, Any] = {} if interval is None else {"delta_interval": _duration(interval)}
    async for _ in watch(stubs, session, counted.reader, **fields):
        counted.note()
        if "turn_completed" in counted.reader.kinds:
            return


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


async def test_one_response_an_interval_and_the_exact_text_from_every_cursor(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    counted, resumed = Counted(), list[Counted]()
    async with asyncio.TaskGroup() as group:
        async for _ in stream(env.stubs, session, "a story", counted.reader):
            counted.note()
            if counted.reader.deltas and "turn_completed" not in counted.reader.kinds:
                resumed.append(Counted())
                resumed[-1].reader = copy.deepcopy(counted.reader)
                group.create_task(_watched(env.stubs, session, resumed[-1], None))
    counted.check(DEFAULT)
    assert len(counted.came) >= 4
    for other in resumed:
        (message,) = other.reader.completed()
        assert other.reader.text(message.message_completed.message_id) == STORY
        assert other.reader.restarts == 0


async def test_each_stream_may_have_an_interval_of_its_own(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    seldom, as_set, at_once = Counted(), Counted(), Counted()
    async with env.another() as other, asyncio.TaskGroup() as group:
        there = Counted()
        group.create_task(_watched(env.stubs, session, seldom, 0.2))
        group.create_task(_watched(env.stubs, session, as_set, None))
        group.create_task(_watched(other, session, there, 0))
        turn = asyncio.create_task(harness.send_message_to_session(env.stubs, session, "a story"))
        await asyncio.wait([turn])
    seldom.check(0.2)
    as_set.check(DEFAULT)
    there.check(0.001)
    session = await harness.create_test_session(env.stubs, agent="talker")
    async for _ in stream(env.stubs, session, "a story", at_once.reader, delta_interval=_duration(0)):
        at_once.note()
    at_once.check(0.001)
    assert len(at_once.came) > len(as_set.came)


async def test_a_burst_is_late_by_less_than_an_interval(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    took = []
    for _ in range(5):
        counted, began = Counted(), time.monotonic()
        async for _ in stream(env.stubs, session, "a burst", counted.reader, delta_interval=_duration(10)):
            counted.note()
        took.append(time.monotonic() - began)
        assert counted.reader.completed()[-1].message_completed.content[0].text == STORY
    assert min(took) < 2


async def test_the_clients_streams_ask_for_it(env: Environment) -> None:
    async with client_of(env.address) as client:
        session = client.session(await harness.create_test_session(env.stubs, agent="talker"))
        texts = [text async for text in session.stream("a story", delta_interval=timedelta(seconds=10)).text()]
    assert len(texts) == 2
    assert "".join(texts) == STORY


async def test_an_interval_has_bounds(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    with pytest.raises(Exception, match="delta_interval") as watched:
        async for _ in env.stubs.sessions.WatchEvents(
            session_pb2.WatchEventsRequest(session_id=session, delta_interval=_duration(10.001))
        ):
            pass
    assert "INVALID_ARGUMENT" in str(watched.value)
    with pytest.raises(Exception, match="delta_interval"):
        async for _ in env.stubs.chat.StreamMessage(
            chat_pb2.StreamMessageRequest(
                session_id=session, request_id="r", content=harness.text_parts("a"), delta_interval=_duration(-1)
            )
        ):
            pass
