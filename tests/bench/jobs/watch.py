"""Watchers of a session: the events that each of them receives, live and from the log."""

import asyncio
import base64
import hashlib
import time
import uuid
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from tests.bench.figures import Invalid
from tests.bench.jobs.recording import WATCH_EVENTS, keep
from tests.bench.runner import Channels
from turnkeeper.pb.v1 import chat_pb2, chat_pb2_grpc, event_pb2, message_pb2, session_pb2

PATIENCE = 30.0


class Watcher:
    """One stream: its responses as bytes with their times of arrival. They are decoded when nothing is measured."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.responses: list[bytes] = []
        self.times: list[float] = []

    async def run(self) -> None:
        async for response in self.call:
            self.responses.append(response)
            self.times.append(time.perf_counter())

    def has_end_of(self, turn_id: str) -> bool:
        """Returns True if one of the last responses has the turn's `turn_completed`."""
        last = events_of(self.responses[-3:])
        return any(event.turn_id == turn_id and event.HasField("turn_completed") for event in last)


class Audience:
    """The watchers of one session, and the messages sent to it."""

    def __init__(self) -> None:
        self.watchers: dict[Watcher, asyncio.Task[None]] = {}
        self.first = b""
        self.began: list[float] = []
        self.reply = b""

    async def until_all(self, done: Callable[[Watcher], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not all(map(done, self.watchers)):
                for watcher, task in self.watchers.items():
                    if task.done():
                        raise Invalid(f"a watcher's stream ended: {await watcher.call.code()}")
                await asyncio.sleep(0.005)

    async def end(self) -> list[Watcher]:
        for watcher, task in self.watchers.items():
            watcher.call.cancel()
            task.cancel()
        await asyncio.wait(self.watchers.values())
        return sorted(self.watchers, key=lambda watcher: len(watcher.responses))

    def recording(self, watcher: Watcher) -> bytes:
        """Returns the responses that this watcher got in each turn, with their times, for the floor that broadcasts."""
        turns: list[list[tuple[float, str]]] = [[] for _ in self.began]
        for at, response in zip(watcher.times, watcher.responses, strict=True):
            turn = bisect(self.began, at) - 1
            turns[turn].append((at - self.began[turn], _base64(response)))
        return orjson.dumps({"first": _base64(self.first), "reply": _base64(self.reply), "turns": turns})


_audience = Audience()


async def open_watchers(channels: Channels, *, address: str, session_id: str, count: int) -> None:
    """Opens `count` live streams of this session with previews, until all have caught up. `end_watchers` ends them."""
    global _audience  # noqa: PLW0603 - one at a time, from one job to the next
    _audience = Audience()
    opened: list[Any] = await channels.to(address)
    request = session_pb2.WatchEventsRequest(session_id=session_id, live_only=True, follow=True, previews=True)
    for number in range(count):
        call = opened[number % len(opened)].unary_stream(WATCH_EVENTS)(request.SerializeToString())
        watcher = Watcher(call)
        _audience.watchers[watcher] = asyncio.create_task(watcher.run())
    await _audience.until_all(lambda watcher: bool(watcher.responses))
    for watcher in _audience.watchers:
        _audience.first = watcher.responses[0]
        watcher.responses.clear()
        watcher.times.clear()


async def talk(
    channels: Channels, *, address: str, session_id: str, message: str, answer: str, count: int
) -> dict[str, float]:
    """Runs `count` turns in turn, until every watcher has received the end of the last. Returns the `seconds`."""
    stub = chat_pb2_grpc.ChatServiceStub((await channels.to(address))[0])
    turn = chat_pb2.Turn()
    for _ in range(count):
        request = chat_pb2.SendMessageRequest(
            session_id=session_id, request_id=uuid.uuid4().hex, content=[message_pb2.Part(text=message)]
        )
        _audience.began.append(time.perf_counter())
        response = await stub.SendMessage(request)
        turn, _audience.reply = response.turn, response.SerializeToString()
        if turn.state != chat_pb2.TURN_STATE_COMPLETED or _text(turn.answer) != answer:
            raise Invalid(f"{session_id}: a turn ended {chat_pb2.TurnState.Name(turn.state)}: {_text(turn.answer)!r}")
    await _audience.until_all(lambda watcher: watcher.has_end_of(turn.turn_id))
    return {"seconds": max(watcher.times[-1] for watcher in _audience.watchers) - _audience.began[0]}


async def end_watchers(_channels: Channels, *, answer: str, count: int, file: str = "") -> dict[str, int]:
    """Ends the streams. Raises Invalid unless all received the same durable events, and each answer in deltas.

    Returns the numbers of `events` and `responses` of all. With `file`, the responses of the watcher in the middle are
    recorded in `file`.responses and `file`.broadcast, each for its floor.
    """
    watchers = await _audience.end()
    delivered = [events_of(watcher.responses) for watcher in watchers]
    digests = {digest(events, answers=[answer] * count) for events in delivered}
    if len(digests) != 1:
        raise Invalid(f"{len(watchers)} watchers of one session received {len(digests)} different streams")
    if file:
        middle = watchers[len(watchers) // 2]
        await asyncio.to_thread(keep, middle.responses, Path(f"{file}.responses"))
        await asyncio.to_thread(Path(f"{file}.broadcast").write_bytes, _audience.recording(middle))
    return {"events": sum(map(len, delivered)), "responses": sum(len(watcher.responses) for watcher in watchers)}


async def read_all(channels: Channels, *, address: str, session_id: str, streams: int) -> dict[str, Any]:
    """Reads the log by `streams` at once, each from its beginning to its end. Raises Invalid if they differ.

    Returns the `seconds`, the numbers of `events` and `responses` of all, and the `digest` of the bytes.
    """
    opened: list[Any] = await channels.to(address)
    request = session_pb2.WatchEventsRequest(session_id=session_id).SerializeToString()
    watchers = [Watcher(opened[n % len(opened)].unary_stream(WATCH_EVENTS)(request)) for n in range(streams)]
    began = time.perf_counter()
    await asyncio.gather(*(watcher.run() for watcher in watchers))
    seconds = time.perf_counter() - began
    delivered = [events_of(watcher.responses) for watcher in watchers]
    digests = {digest(events) for events in delivered}
    if len(digests) != 1:
        raise Invalid(f"{streams} replays of one log gave {len(digests)} different ones")
    return {
        "seconds": seconds,
        "events": sum(map(len, delivered)),
        "responses": sum(len(watcher.responses) for watcher in watchers),
        "digest": digests.pop(),
    }


def events_of(responses: list[bytes]) -> list[event_pb2.Event]:
    return [event for response in responses for event in session_pb2.WatchEventsResponse.FromString(response).events]


def digest(events: list[event_pb2.Event], answers: list[str] | None = None) -> str:
    """Returns the digest of the durable events in order, and of the texts that the deltas make.

    Deltas may be cut differently; neither numbers nor text may have a gap. `answers`: the texts that they must make.
    Raises Invalid.
    """
    durable = [event for event in events if event.sequence]
    if durable and [event.sequence for event in durable] != list(
        range(durable[0].sequence, durable[0].sequence + len(durable))
    ):
        raise Invalid("a watcher's durable events have a gap")
    texts: dict[tuple[str, int], bytes] = defaultdict(bytes)
    for event in events:
        if event.HasField("content_delta"):
            delta = event.content_delta
            if delta.offset != len(texts[delta.message_id, delta.attempt]):
                raise Invalid(f"a watcher's deltas of {delta.message_id} have a gap at {delta.offset}")
            texts[delta.message_id, delta.attempt] += delta.text.encode()
    if answers is not None and [text.decode() for text in texts.values()] != answers:
        raise Invalid(f"a watcher's deltas make other answers: {list(texts.values())!r}")
    kept = b"".join(event.SerializeToString(deterministic=True) for event in durable) + b"".join(texts.values())
    return hashlib.sha256(kept).hexdigest()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(content: Any) -> str:
    return "".join(part.text for part in content)
