"""What fails once where a turn's run begins: it costs a moment, and neither the lease nor the turn."""

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS
from tests.test_tools import ToolControl
from turnkeeper import app
from turnkeeper.domain.event import HISTORY
from turnkeeper.engine.eventlog.session_cache import SessionCache
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.pb.v1 import chat_pb2
from turnkeeper.store.changeset import Claim, Snapshot, StoredEvent
from turnkeeper.store.mongo.store import MongoStore

LEASE = timedelta(seconds=50)
"""Nobody waits for one to lapse."""
SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""


class Flawed(MongoStore):
    """The owner's next read of this kind goes wrong, when it is one that a run begins with."""

    armed = False
    read = ""
    error: Callable[[], Exception] = ServiceUnavailable
    failed = 0

    def _stumble(self, read: str) -> None:
        if type(self).armed and read == self.read:
            type(self).armed, type(self).failed = False, self.failed + 1
            raise type(self).error()

    async def claim(self, owner: str, *, lease: timedelta) -> Claim | None:
        claim = await super().claim(owner, lease=lease)
        if claim is not None and not self.failed:
            type(self).armed = True
        return claim

    async def snapshot(self, *args: Any, **kwargs: Any) -> Snapshot | None:
        self._stumble("snapshot")
        return await super().snapshot(*args, **kwargs)

    async def events(self, *args: Any, **kwargs: Any) -> Sequence[StoredEvent]:
        if kwargs.get("kinds") == HISTORY:
            self._stumble("events")
        return await super().events(*args, **kwargs)


@pytest.fixture(autouse=True)
def flawed(monkeypatch: pytest.MonkeyPatch) -> type[Flawed]:
    """The servers' store, fresh for each test; no server caches a conversation, so that each run reads it."""

    class Fresh(Flawed):
        pass

    monkeypatch.setattr(SessionCache, "checkin", lambda *_: None)
    monkeypatch.setattr(app, "MongoStore", Fresh)
    return Fresh


@pytest.mark.parametrize("read", ["snapshot", "events"])
async def test_a_read_that_fails_once_costs_its_owner_nothing(
    mongo_uri: str, database_name: str, tool_control: ToolControl, flawed: type[Flawed], read: str
) -> None:
    flawed.read = read
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model, agents=AGENTS, lease=LEASE) as running,
        harness.connect(running.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="worker")
        await harness.send_message_to_session(stubs, session, f"hold {read}", wait=0)
        turn = await harness.send_message_to_session(
            stubs, session, "claimed", wait=0, if_busy=chat_pb2.IF_BUSY_ENQUEUE
        )
        tool_control.release(read)
        ended = await harness.wait_for_turn(stubs, session, turn.turn_id, seconds=8)
        kinds = harness.kinds(await harness.all_events(stubs, session))
    assert flawed.failed == 1
    assert harness.answer_of(ended) == "You said: claimed"
    assert ended.attempt == 1
    assert "attempt_superseded" not in kinds
    await check(mongo_uri, database_name)


async def test_after_a_defect_the_lease_is_given_back_and_the_next_try_completes(
    mongo_uri: str, database_name: str, flawed: type[Flawed], caplog: pytest.LogCaptureFixture
) -> None:
    flawed.read, flawed.error = "events", lambda: RuntimeError("a defect")
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model, agents=AGENTS, lease=LEASE) as running,
        harness.connect(running.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="talker")
        await harness.send_message_to_session(stubs, session, "first")
        flawed.armed = True
        turn = await harness.send_message_to_session(stubs, session, "again", wait=0)
        ended = await harness.wait_for_turn(stubs, session, turn.turn_id, seconds=8)
        kinds = harness.kinds(await harness.all_events(stubs, session))
    assert flawed.failed == 1
    assert harness.answer_of(ended) == "You said: again"
    assert ended.attempt == 2
    assert "attempt_superseded" not in kinds, "nobody was lost"
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert told == ["a turn's run failed by a defect: its lease is released, and the turn is tried again later"]
    await check(mongo_uri, database_name)
