"""A server with few file descriptors: clients leave the rest to it, and no model is blamed for a lack of ours."""

import asyncio
import resource
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests import harness
from tests.e2e.support.environment import AGENTS, Environment, until_event
from tests.processes import accepted
from turnkeeper import descriptors
from turnkeeper.pb.v1 import chat_pb2, error_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = """
[[reply]]
text = "You said: {user}"
"""
FEW = 256
TURNS = 64
MOST = descriptors.connections(FEW, models=TURNS)
FLAGS = ("--agents", str(AGENTS), "--concurrency", str(TURNS))


async def test_connections_beyond_the_most_are_closed_and_turns_of_others_are_completed(
    env: Environment, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -n {FEW}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            harness.server_process(env.mongo_uri, env.database, env.model, flags=FLAGS, python=str(python))
        )
        stubs = await stack.enter_async_context(harness.connect(server.address))
        sessions = [await harness.create_test_session(stubs, agent="talker") for _ in range(TURNS)]
        host, port = server.address.rsplit(":", 1)
        crowd = [await asyncio.open_connection(host, int(port)) for _ in range(FEW)]
        closed = [reader for reader, _ in crowd if await _is_closed(reader)]
        assert len(closed) >= FEW - MOST
        assert accepted(server.pid, int(port)) <= MOST
        sending = [harness.send_message_to_session(stubs, session, "hello") for session in sessions]
        for turn in await asyncio.gather(*sending):
            assert turn.state == chat_pb2.TURN_STATE_COMPLETED
        for _, writer in crowd:
            writer.close()


async def _is_closed(reader: asyncio.StreamReader) -> bool:
    """Returns True if the server closes the connection instead of sending its settings."""
    try:
        return not await asyncio.wait_for(reader.read(1), 10)
    except ConnectionError:
        return True


def next_descriptor(pid: int) -> int:
    """Returns the number of the next descriptor that the process would get: a limit of so many lets it have none."""
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in range(len(used) + 1) if number not in used)


async def test_a_call_that_finds_no_descriptor_is_our_fault_and_is_tried_again(env: Environment) -> None:
    async with (
        harness.server_process(env.mongo_uri, env.database, env.model, flags=FLAGS) as server,
        harness.connect(server.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="hasty")
        await harness.all_events(stubs, session)
        watching = asyncio.create_task(until_event(stubs, session, "attempt_failed"))
        soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (next_descriptor(server.pid), hard))
        turn = await harness.send_message_to_session(stubs, session, "are you there?", wait=0)
        failed = (await watching).attempt_failed
        assert failed.error.code == error_pb2.SESSION_ERROR_CODE_RUN_DEFECT
        assert failed.error.metadata["reason"] == "NO_DESCRIPTOR"
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))
        ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert harness.answer_of(ended) == "You said: are you there?"
