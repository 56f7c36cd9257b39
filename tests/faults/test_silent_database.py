"""A database that does not answer, at default times: readiness ends after 30 s, and begins again once it answers."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests import harness
from tests.faults.embedded import NOT_SERVING, SERVING, Embedded, embedded
from tests.processes import until_call
from turnkeeper.pb.v1 import session_pb2

SCRIPT = '[[reply]]\ntext = "You said: {user}"'


@pytest.mark.timeout(180)
async def test_a_frozen_database_ends_readiness_after_thirty_seconds(tmp_path: Path) -> None:
    """No stream ends for it. A freeze of twelve seconds changes nothing."""
    async with harness.scripted(SCRIPT) as model, embedded(tmp_path, model) as served:
        session = await harness.create_test_session(served.stubs, agent="talker")
        watch: Any = served.stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, follow=True))
        await watch.read()
        os.kill(served.mongod, signal.SIGSTOP)
        await asyncio.sleep(12)
        os.kill(served.mongod, signal.SIGCONT)
        answered = await harness.send_message_to_session(served.stubs, session, "hello", wait=20)
        assert harness.answer_of(answered) == "You said: hello"
        assert "has not answered" not in served.logged()

        os.kill(served.mongod, signal.SIGSTOP)
        frozen_at = time.monotonic()
        await until_call(lambda: is_now(served, NOT_SERVING), timeout=60)
        after = time.monotonic() - frozen_at
        os.kill(served.mongod, signal.SIGCONT)
        thawed_at = time.monotonic()
        await until_call(lambda: is_now(served, SERVING), timeout=30)
        again = time.monotonic() - thawed_at
        assert 25 <= after <= 35, "30 s without a good ping, ± 5 s: the last one was up to 5 s before the freeze"
        assert again < 10
        await harness.send_message_to_session(served.stubs, session, "hello again", wait=20)
        kinds: list[str] = []
        while kinds.count("turn_completed") < 2:
            kinds += [str(event.WhichOneof("payload")) for event in (await watch.read()).events]
        print(f"NOT_SERVING after {after:.1f} s, SERVING again after {again:.1f} s")


async def is_now(served: Embedded, status: int) -> bool:
    return await served.health() == status
