"""Runs many clients that each send a message and read its answer, until the program is killed.

`python -m tests.e2e.support.crowd ADDRESS TOKEN SESSION…` prints `attached` when each
client has read a delta of its answer.
"""

import asyncio
import sys

from grpc import aio

from tests.calls import bearer
from tests.e2e.support.stream_reader import Reader, stream
from tests.harness import Stubs
from tests.metadata_channel import MetadataChannel


async def main(address: str, token: str, sessions: list[str]) -> None:
    async with aio.insecure_channel(address) as channel:
        stubs = Stubs(MetadataChannel(channel, bearer(token)))
        attached = asyncio.Semaphore(0)

        async def read(session: str) -> None:
            reader = Reader(whole=False)
            async for _ in stream(stubs, session, "a story", reader):
                if len(reader.deltas) == 1:
                    attached.release()

        async with asyncio.TaskGroup() as group:
            for session in sessions:
                group.create_task(read(session))
            for _ in sessions:
                await attached.acquire()
            print("attached", flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
