"""A program that opens many idle streams over few connections.

`python -m tests.chaos.crowd.idlers ADDRESS CONNECTIONS STREAMS SESSIONS` opens STREAMS streams on each of CONNECTIONS
connections, over SESSIONS sessions in turn. It prints `idle` once all have caught up. It then reads a number of
streams, waits until that many saw a turn end, and prints `reached N broken N`: how many did, and how many have ended.
"""

import asyncio
import contextlib
import itertools
import sys

import grpc
from grpc import aio

from tests.chaos.crowd.talkers import session_name
from tests.harness import Stubs
from tests.processes import until
from turnkeeper.pb.v1 import session_pb2

AT_ONCE = 64
"""Streams that are opened at a time."""
REACH_TIME = 30.0
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


class Idlers:
    """The streams of this program."""

    def __init__(self) -> None:
        self.caught_up = asyncio.Semaphore(0)
        self.reached = 0
        self.broken = 0

    async def watch(self, stubs: Stubs, session: str, opening: asyncio.Semaphore) -> None:
        """Reads one stream until it ends."""
        request = session_pb2.WatchEventsRequest(session_id=session, follow=True, previews=True)
        await opening.acquire()
        call = stubs.sessions.WatchEvents(request)
        try:
            async for response in call:
                if response.caught_up:
                    opening.release()
                    self.caught_up.release()
                elif any(event.HasField("turn_completed") for event in response.events):
                    self.reached += 1
        except grpc.RpcError as error:
            print(f"a stream ended: {error.code()} {error.details()}", file=sys.stderr)
        self.broken += 1


async def main(address: str, connections: int, streams: int, sessions: int) -> None:
    idlers, opening = Idlers(), asyncio.Semaphore(AT_ONCE)
    names = itertools.cycle(session_name(number) for number in range(sessions))
    channels = [aio.insecure_channel(address, options=_OWN_CONNECTION) for _ in range(connections)]
    async with asyncio.TaskGroup() as group:
        for channel in channels:
            stubs = Stubs(channel)
            for _ in range(streams):
                group.create_task(idlers.watch(stubs, next(names), opening))
        for _ in range(connections * streams):
            await idlers.caught_up.acquire()
        print("idle", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            await _until_reached(idlers, int(line))
            print(f"reached {idlers.reached} broken {idlers.broken}", flush=True)


async def _until_reached(idlers: Idlers, count: int) -> None:
    with contextlib.suppress(TimeoutError):
        await until(lambda: idlers.reached >= count, timeout=REACH_TIME)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:5])))
