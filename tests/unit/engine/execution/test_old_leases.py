"""An owner whose lease got old while it was stopped renews it before it starts a tool or calls its model."""

import asyncio
import time
from typing import Any

import pytest

from tests.processes import until
from tests.unit.engine.execution.one_replica import Replica
from turnkeeper.domain.turn import TurnState
from turnkeeper.engine.eventlog.lease import HeldLease

STOPPED = 25.0
"""Seconds that the owner is stopped: more than two thirds of its lease of 30 s, and less than all of it."""


class Stopped(Replica):
    """An owner that is stopped while each of its writes is stored, until `goes_on`. Its worker's own renewals hang."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.tools.error = None
        self.tools.released.set()
        self.model.tool = "act"
        self.goes_on = False
        self.renewals = 0
        self.taken_at = 0
        """The number of the renewal before which another replica takes the turn; 0: none does."""
        self.held: list[bool] = []
        """At each start of a tool or model call: whether the lease was surely held."""
        self._ahead = 0.0
        real = time.clock_gettime
        patch.setattr(time, "clock_gettime", lambda clock: real(clock) + self._ahead)
        self._note_starts(patch)

    async def _enter(self, method: str) -> None:
        await super()._enter(method)
        match method:
            case "claim" | "commit" if not self.goes_on:
                self._ahead += STOPPED
            case "renew_all":
                await asyncio.Event().wait()
            case "renew":
                self.renewals += 1
                if self.renewals == self.taken_at:
                    self._lose()

    def _lose(self) -> None:
        self.goes_on = True
        for stored in self.database.sessions.values():
            stored.fence, stored.owner = stored.fence + 1, "two"

    def _note_starts(self, patch: pytest.MonkeyPatch) -> None:
        stream, call = self.model.stream, self.tools.call

        def noted_stream(*arguments: Any) -> Any:
            self.held.append(self.lease.surely_held)
            return stream(*arguments)

        def noted_call(*arguments: Any) -> Any:
            self.held.append(self.lease.surely_held)
            return call(*arguments)

        patch.setattr(self.model, "stream", noted_stream)
        patch.setattr(self.tools, "call", noted_call)

    @property
    def lease(self) -> HeldLease:
        (lease,) = self.held_leases
        return lease


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Stopped:
    return Stopped(monkeypatch)


async def test_what_the_owner_starts_is_its_to_start(replica: Stopped) -> None:
    async with replica.running():
        _, turn = await replica.turn()
    assert turn.state is TurnState.COMPLETED
    assert replica.held == [True, True, True], "the model, the tool, the model again"
    assert replica.renewals == 3


@pytest.mark.parametrize(("renewal", "started"), [(1, 0), (2, 1), (3, 2)])
async def test_an_owner_whose_turn_was_taken_starts_nothing_more(replica: Stopped, renewal: int, started: int) -> None:
    replica.taken_at = renewal
    async with replica.running():
        await replica.accepted()
        await until(lambda: replica.renewals == renewal and not len(replica.held_leases))
    assert replica.held == [True] * started
    assert replica.renewals == renewal
