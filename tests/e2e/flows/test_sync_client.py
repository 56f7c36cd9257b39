"""The client without asyncio where grpc.aio's cannot be used: beside a running loop, in many threads, after a fork."""

import asyncio
import sys

from tests import harness

ANSWER = "A script answers."
SCRIPT = f"""
[[reply]]
text = "{ANSWER}"
chunk = 3
"""
START = f"""
import asyncio, os, sys, threading, warnings
from turnkeeper_client import Client
from turnkeeper_client import sync
from turnkeeper_client.errors import ClientClosed

warnings.simplefilter("error")
ADDRESS, ANSWER = sys.argv[1], {ANSWER!r}


def ask(client):
    session = client.sessions.create("assistant")
    stream = session.stream("Hello")
    assert "".join(stream.text()) == ANSWER
    return session.id
"""
PROGRAMS = {
    "inside a running loop that uses the other client": """
async def main():
    async with Client(ADDRESS) as client:
        session = await client.sessions.create("assistant")
        events = aiter(session.follow())
        assert (await anext(events)).HasField("session_created")
        with sync.Client(ADDRESS) as blocking:
            for _ in range(3):
                ask(blocking)  # holds the loop up, and does not need it
                await session.send("Hello")
            await asyncio.gather(*(asyncio.to_thread(ask, blocking) for _ in range(4)), session.send("Hello"))
        async for event in events:
            if event.HasField("turn_completed"):
                break
        await events.aclose()

asyncio.run(main(), debug=False)
""",
    "in eight threads": """
with sync.Client(ADDRESS) as client:
    ids = []
    threads = [threading.Thread(target=lambda: ids.extend(ask(client) for _ in range(2))) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
assert len(set(ids)) == 16
""",
    "after a fork before its first call": """
client = sync.Client(ADDRESS)
children = []
for _ in range(3):
    if not (child := os.fork()):
        ask(client)
        client.close()
        os._exit(7)
    children.append(child)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [7, 7, 7]
ask(client)
if not (child := os.fork()):
    try:
        client.session("s1").get()
    except ClientClosed as error:
        assert "forked" in str(error)
        os._exit(8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 8
client.close()
""",
}


async def test_it_works_where_the_asynchronous_one_cannot(mongo_uri: str, database_name: str) -> None:
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model, identity="none") as running,
    ):
        ended = await asyncio.gather(*(run(program, running.address) for program in PROGRAMS.values()))
    for name, (status, printed) in zip(PROGRAMS, ended, strict=True):
        assert (status, printed) == (0, ""), f"{name}: {printed}"


async def run(program: str, address: str) -> tuple[int | None, str]:
    """Runs a program of its own process. Returns its exit status and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", START + program, address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), 40)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, printed.decode()
