"""Failures at the beginning of a turn's run: they delay it, and lose neither the lease nor the turn."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS
from tests.test_tools import ToolControl
from turnkeeper.domain.event import HISTORY
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import NONE_BUSY, Busy, Claim, Snapshot, StoredEvent
from turnkeeper.store.mongo.store import MongoStore

LEASE = timedelta(seconds=50)
"""Longer than a test: no lease lapses."""
SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""


@dataclass(slots=True, kw_only=True)
class Flaw:
    """A failure that occurs once: of the owner's read of this kind at the beginning of a run."""

    read: str
    error: Callable[[], Exception] = ServiceUnavailable
    armed: bool = False
    failed: int = 0

    def new_store(self, *args: Any, **settings: Any) -> "Flawed":
        """Returns the store of a server."""
        return Flawed(self, *args, **settings)

    def fail_if_armed(self, read: str) -> None:
        """Raises the error if it is due at this read."""
        if self.armed and read == self.read:
            self.armed, self.failed = False, self.failed + 1
            raise self.error()


class Flawed(MongoStore):
    """A store with a flaw, which is armed by the first claim."""

    def __init__(self, flaw: Flaw, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._flaw = flaw

    async def claim(self, owner: str, *, lease: timedelta, without: Busy = NONE_BUSY) -> Claim | None:
        claim = await super().claim(owner, lease=lease, without=without)
        if claim is not None and not self._flaw.failed:
            self._flaw.armed = True
        return claim

    async def snapshot(self, *args: Any, **kwargs: Any) -> Snapshot | None:
        self._flaw.fail_if_armed("snapshot")
        return await super().snapshot(*args, **kwargs)

    async def events(self, *args: Any, **kwargs: Any) -> Sequence[StoredEvent]:
        if kwargs.get("kinds") == HISTORY:
            self._flaw.fail_if_armed("events")
        return await super().events(*args, **kwargs)


@pytest.mark.parametrize("read", ["snapshot", "events"])
async def test_a_read_that_fails_once_costs_its_owner_nothing(
    mongo_uri: str, database_name: str, tool_control: ToolControl, read: str
) -> None:
    """The turn of the second session is claimed, by a server that has no conversation of it: the run reads both."""
    flaw = Flaw(read=read)
    settings: dict[str, Any] = {"agents": AGENTS, "lease": LEASE, "concurrency": 1, "new_store": flaw.new_store}
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model, **settings) as running,
        harness.connect(running.address) as stubs,
    ):
        busy = await harness.create_test_session(stubs, agent="worker")
        await harness.send_message_to_session(stubs, busy, f"hold {read}", wait=0)
        session = await harness.create_test_session(stubs, agent="worker")
        turn = await harness.send_message_to_session(stubs, session, "claimed", wait=0)
        tool_control.release(read)
        ended = await harness.wait_for_turn(stubs, session, turn.turn_id, seconds=8)
        kinds = harness.kinds(await harness.all_events(stubs, session))
    assert flaw.failed == 1
    assert harness.answer_of(ended) == "You said: claimed"
    assert ended.attempt == 1
    assert "attempt_superseded" not in kinds
    await check(mongo_uri, database_name)


async def test_after_a_defect_the_turn_is_given_back_and_the_next_run_completes(
    mongo_uri: str, database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The second turn runs on a server that has no conversation of the session, so that its run reads it."""
    flaw = Flaw(read="events", error=lambda: RuntimeError("a defect"))
    settings: dict[str, Any] = {"agents": AGENTS, "lease": LEASE, "new_store": flaw.new_store}
    async with harness.scripted(SCRIPT) as model:
        async with (
            harness.serving(mongo_uri, database_name, model, **settings) as running,
            harness.connect(running.address) as stubs,
        ):
            session = await harness.create_test_session(stubs, agent="talker")
            await harness.send_message_to_session(stubs, session, "first")
        flaw.armed = True
        async with (
            harness.serving(mongo_uri, database_name, model, **settings) as running,
            harness.connect(running.address) as stubs,
        ):
            turn = await harness.send_message_to_session(stubs, session, "again", wait=0)
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id, seconds=8)
            kinds = harness.kinds(await harness.all_events(stubs, session))
    assert flaw.failed == 1
    assert harness.answer_of(ended) == "You said: again"
    assert ended.attempt == 2
    assert "attempt_superseded" not in kinds, "no owner was lost"
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert [error.partition(":")[0] for error in errors] == ["a turn's run failed because of a defect"]
    await check(mongo_uri, database_name)
