"""Offers calls at a rate, whatever the calls before them do: an open loop."""

import asyncio
import contextlib
import gc
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import aio

from tests.bench.jobs.live import request_of
from tests.bench.jobs.turns import STREAM_MESSAGE
from tests.bench.pacing import Pace
from tests.bench.runner import Channels
from tests.status_details import DETAILS
from turnkeeper.pb.v1 import chat_pb2, session_pb2, session_pb2_grpc

Phase = Sequence[float]
"""Calls a second, and for how many seconds."""
Record = tuple[float, float, str]
"""A call: when it was intended to begin, in seconds after the first; how long it took from then; how it ended."""

COMPLETED: Final = "COMPLETED"
OK: Final = "OK"
OPEN: Final = "open"
"""How a call ended that had not ended when the load did."""
IN_TIME: Final = 2.0
"""Seconds from its intended begin within which a turn must be COMPLETED."""
PATIENCE: Final = 20.0
"""Seconds after which a caller gives up."""
PAUSE: Final = 0.05
"""Seconds that a caller of `saturate` waits after a refusal."""
_CONNECTIONS: Final = 32
"""So many that no call waits in the client for one of a connection's 1,024 streams."""


async def offer_turns(
    _channels: Channels,
    *,
    address: str,
    prefix: str,
    phases: list[Phase],
    pace: list[int],
    patience: float = PATIENCE,
    linger: float = IN_TIME,
    most_bad: int | None = None,
) -> dict[str, Any]:
    """Offers a StreamMessage for each new session; the turn creates it. Sessions are `prefix` and a number.

    Calls end after `patience` seconds at the latest, and `linger` seconds after the last phase. With `most_bad`, the
    load ends once more calls than that have failed or were not in time.
    Returns when it `began` (the monotonic clock), and the `records`.
    """
    chosen = Pace(*pace)
    async with AsyncExitStack() as stack:
        calls: list[Any] = []
        for _ in range(_CONNECTIONS):
            channel = aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            await stack.enter_async_context(channel)
            calls.append(channel.unary_stream(STREAM_MESSAGE))

        async def turn(number: int) -> bytes:
            call = calls[number % len(calls)](request_of(f"{prefix}{number}", chosen), timeout=patience)
            last = b""
            async for response in call:
                last = response
            return last

        return await open_loop(phases, turn, state_of, linger=linger, most_bad=most_bad)


async def offer_reads(
    channels: Channels, *, address: str, sessions: list[str], phases: list[Phase], patience: float = PATIENCE
) -> dict[str, Any]:
    """Offers calls of GetSession, on connections of their own. Returns the same as `offer_turns`."""
    stubs = [session_pb2_grpc.SessionServiceStub(channel) for channel in await channels.to(address)]

    async def read(number: int) -> None:
        request = session_pb2.GetSessionRequest(session_id=sessions[number % len(sessions)])
        await stubs[number % len(stubs)].GetSession(request, timeout=patience)

    return await open_loop(phases, read, lambda _: OK, linger=patience)


async def open_loop(
    phases: Sequence[Phase],
    call: Callable[[int], Awaitable[Any]],
    end_of: Callable[[Any], str],
    *,
    linger: float,
    most_bad: int | None = None,
) -> dict[str, Any]:
    """Begins the calls at their intended times. `end_of` names the result of a call; it is used after the load."""
    gc.disable()  # the search for cycles among thousands of calls would stop the load for a quarter of a second
    loop, begun, tasks = _OpenLoop(call), 0, set[asyncio.Task[None]]()
    times = intended(phases)
    for number, at in enumerate(times):
        await asyncio.sleep(max(0.0, loop.began + at - time.monotonic()))
        if most_bad is not None and loop.bad > most_bad:
            break
        begun = number + 1
        task = asyncio.create_task(loop.run(number, at))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=linger)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    stopped = time.monotonic() - loop.began
    gc.enable()
    records: list[Record] = []
    for number, at in enumerate(times[:begun]):
        took, result = loop.ended.get(number, (max(0.0, stopped - at), None))
        if isinstance(result, aio.AioRpcError):
            records.append((at, took, name_of(result)))
        else:
            records.append((at, took, end_of(result) if number in loop.ended else OPEN))
    return {"began": loop.began, "records": records}


class _OpenLoop:
    """The calls of an open loop that have ended: after how long, and with what result."""

    def __init__(self, call: Callable[[int], Awaitable[Any]]) -> None:
        self.began = time.monotonic()
        self.ended: dict[int, tuple[float, Any]] = {}
        self.bad = 0
        self._call = call

    async def run(self, number: int, at: float) -> None:
        """Runs a call that was intended to begin at this time."""
        result: Any
        try:
            result = await self._call(number)
        except aio.AioRpcError as error:
            result = error
        took = time.monotonic() - self.began - at
        self.ended[number] = (took, result)
        self.bad += took > IN_TIME or isinstance(result, aio.AioRpcError)


def intended(phases: Sequence[Phase]) -> list[float]:
    """Returns when each call of the phases is intended to begin, in seconds after the first."""
    times, start = list[float](), 0.0
    for rate, seconds in phases:
        times += [start + number / rate for number in range(round(rate * seconds))]
        start += seconds
    return times


def state_of(response: bytes) -> str:
    """Returns the state of the turn in a stream's last response: `COMPLETED`."""
    state = chat_pb2.StreamMessageResponse.FromString(response).turn.state
    return chat_pb2.TurnState.Name(state).removeprefix("TURN_STATE_")


def error_name(code: grpc.StatusCode, details: bytes) -> str:
    """Returns status, reason with its limit, and whether the error has RetryInfo: `RESOURCE_EXHAUSTED.X:turns.retry`.

    A `-` is the reason of an error without details; `bare` ends one without RetryInfo.
    """
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    packed = status_pb2.Status.FromString(details).details
    has_retry = any(detail.Unpack(retry) for detail in packed)
    reason = info.reason if any(detail.Unpack(info) for detail in packed) else "-"
    limit = f":{info.metadata['limit']}" if "limit" in info.metadata else ""
    return f"{code.name}.{reason}{limit}.{'retry' if has_retry else 'bare'}"


def name_of(error: aio.AioRpcError) -> str:
    """Returns the `error_name` of a call's error."""
    details = dict(error.trailing_metadata() or ()).get(DETAILS, b"")
    return error_name(error.code(), details if isinstance(details, bytes) else b"")


async def saturate(channels: Channels, *, address: str, pace: list[int], concurrency: int, seconds: float) -> float:
    """Keeps so many turns under way. Returns how many a second were COMPLETED in the second half of the time."""
    chosen, began, ended = Pace(*pace), time.monotonic(), list[float]()
    calls: list[Any] = [channel.unary_stream(STREAM_MESSAGE) for channel in await channels.to(address)]

    async def work(number: int) -> None:
        while time.monotonic() < began + seconds:
            last = b""
            with contextlib.suppress(aio.AioRpcError):
                async for response in calls[number % len(calls)](request_of(uuid.uuid4().hex, chosen)):
                    last = response
            if last and state_of(last) == COMPLETED:
                ended.append(time.monotonic() - began)
            else:
                await asyncio.sleep(PAUSE)

    async with asyncio.TaskGroup() as group:
        for number in range(concurrency):
            group.create_task(work(number))
    return sum(seconds / 2 <= at < seconds for at in ended) / (seconds / 2)
