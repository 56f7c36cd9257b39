"""A program: clients that each send a message on a connection of their own and read its answer, until they are killed.

`python -m tests.chaos.crowd.talkers ADDRESS FIRST COUNT` prints `talking` once every message is accepted.
"""

import asyncio
import sys

from turnkeeper_client import Client
from turnkeeper_client.pb.v1.chat_pb2 import CreateSessionParams

AT_ONCE = 32
"""Messages on their way at a time; the answers are all read at once."""


def session_name(number: int) -> str:
    return f"crowd-{number}"


async def _talk(address: str, number: int, sending: asyncio.Semaphore, accepted: asyncio.Semaphore) -> None:
    name = session_name(number)
    await sending.acquire()
    async with Client(address) as client:
        stream = client.session(name).stream(
            f"talk {name}", request_id=name, create_session=CreateSessionParams(agent="talker")
        )
        first = True
        async for _ in stream:
            if first:
                first = False
                sending.release()
                accepted.release()


async def main(address: str, first: int, count: int) -> None:
    sending, accepted = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        for number in range(first, first + count):
            group.create_task(_talk(address, number, sending, accepted))
        for _ in range(count):
            await accepted.acquire()
        print("talking", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
