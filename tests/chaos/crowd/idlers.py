"""A program: many streams over few connections that have nothing to say for long.

`python -m tests.chaos.crowd.idlers ADDRESS CONNECTIONS STREAMS SESSIONS` opens STREAMS streams on each of CONNECTIONS
connections, over SESSIONS sessions in turn. It prints `idle` once all have caught up. It then reads a number of
streams, waits until that many saw a turn end, and prints `heard N broken N`: how many did, and how many have ended.
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
HEARD_TIME = 30.0
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


class Idlers:
    """All streams of this program."""

    def __init__(self) -> None:
        self.caught_up = asyncio.Semaphore(0)
        self.heard = 0
        self.broken = 0

    async def watch(self, stubs: Stubs, session: str, opening: asyncio.Semaphore) -> None:
        """One stream, for as long as it lasts."""
        request = session_pb2.WatchEventsRequest(session_id=session, follow=True, previews=True)
        await opening.acquire()
        call = stubs.sessions.WatchEvents(request)
        try:
            async for response in call:
                if response.caught_up:
                    opening.release()
                    self.caught_up.release()
                elif any(event.HasField("turn_completed") for event in response.events):
                    self.heard += 1
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
            await _until_heard(idlers, int(line))
            print(f"heard {idlers.heard} broken {idlers.broken}", flush=True)


async def _until_heard(idlers: Idlers, count: int) -> None:
    with contextlib.suppress(TimeoutError):
        await until(lambda: idlers.heard >= count, timeout=HEARD_TIME)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:5])))
