"""An owner whose commits are refused because others write to its session."""

import time

from tests.unit.engine.execution.one_replica import Replica
from turnkeeper.domain.event import MessageReceived
from turnkeeper.domain.turn import TurnState

REFUSED = 8


async def test_an_owner_pauses_longer_after_each_commit_that_is_refused() -> None:
    replica = Replica(jitter=1.0)
    replica.model.goes_on.clear()
    async with replica.running():
        key, turn_id = await replica.accepted()
        await replica.model.wrote.wait()
        replica.others_write = REFUSED
        began = time.monotonic()
        replica.model.goes_on.set()
        turn = await replica.ended(key, turn_id)
    assert time.monotonic() - began >= sum(0.002 * number for number in range(1, REFUSED + 1))
    assert turn.state is TurnState.COMPLETED
    assert len([payload for payload in replica.payloads(key) if isinstance(payload, MessageReceived)]) == 1 + REFUSED
