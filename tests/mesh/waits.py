"""Waiting calls of a silent model, and streams without an event, both for longer than the proxy's idle time."""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from tests.chaos import tenants
from tests.mesh.load import connect
from tests.mesh.script import WORKER, silent
from tests.mesh.stage import Stage
from turnkeeper_client import Client
from turnkeeper_client.errors import TransportError, TurnkeeperError
from turnkeeper_client.pb.v1.chat_pb2 import TURN_STATE_RUNNING

WAIT: Final = 50.0
"""Seconds for which a caller asks `SendMessage` to wait."""
COUNT: Final = 16
"""Waiting calls, and as many idle streams."""
_LATE: Final = 15.0
"""Seconds after its time in which a waiting call must be answered: far below the limit of its route."""
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Waited:
    """What came of waiting calls and idle streams. `broken` has a line for each that did not go as promised."""

    calls: int
    streams: int
    seconds: float
    broken: list[str]


async def wait(stage: Stage, *, seconds: float = WAIT, count: int = COUNT) -> Waited:
    """Makes the calls, and keeps the streams open meanwhile and some seconds longer."""
    broken: list[str] = []
    who = stage.caller(tenants.TENANTS[0])
    began = time.monotonic()
    async with connect(stage.envoy.address, ca=stage.ca, identity=who) as client, asyncio.TaskGroup() as group:
        answered = asyncio.Event()
        idlers = [group.create_task(_idle(client, answered, broken)) for _ in range(count)]
        waiting = [group.create_task(_wait(client, number, seconds, broken)) for number in range(count)]
        await asyncio.gather(*waiting)
        answered.set()
        await asyncio.gather(*idlers)
    return Waited(count, count, time.monotonic() - began, broken)


async def _wait(client: Client, number: int, seconds: float, broken: list[str]) -> None:
    label = tenants.label(tenants.TENANTS[0], f"silent-{number}")
    began = time.monotonic()
    try:
        session = await client.sessions.create(WORKER)
        began = time.monotonic()
        turn = await session.send(silent(label), wait=timedelta(seconds=seconds), request_id=label)
    except TurnkeeperError as error:
        broken.append(f"a call that waits for {seconds:.0f} s ended after {time.monotonic() - began:.1f} s: {error!r}")
        return
    took = time.monotonic() - began
    if turn.state != TURN_STATE_RUNNING or not seconds - 0.5 <= took <= seconds + _LATE:
        broken.append(f"a call that waits for {seconds:.0f} s had a turn in state {turn.state} after {took:.1f} s")
    with contextlib.suppress(TurnkeeperError):  # the turn ends by itself later
        await session.cancel(turn.turn_id)


async def _idle(client: Client, over: asyncio.Event, broken: list[str]) -> None:
    """Follows a session in which nothing happens; then the session ends, and so does the stream, on one connection."""
    given, connections = list[int](), 0
    try:
        session = await client.sessions.create(WORKER)
        async with asyncio.TaskGroup() as group:
            group.create_task(_end(over, client, session.id))
            async for batch in session.follow(previews=False).batches():
                given += [event.sequence for event in batch.events]
                connections += batch.caught_up
    except* TurnkeeperError as errors:
        broken += [f"an idle stream ended with {error!r}" for error in errors.exceptions]
    if given != [1, 2] or connections != 1:
        broken.append(f"an idle stream gave events {given} over {connections} connections")


async def _end(over: asyncio.Event, client: Client, session_id: str) -> None:
    await over.wait()
    for _ in range(_TRIES):
        with contextlib.suppress(TransportError):
            await client.sessions.end(session_id)
            return
    await client.sessions.end(session_id)
