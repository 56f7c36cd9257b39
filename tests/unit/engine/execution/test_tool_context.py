"""What a tool may know about its call: who is behind it, and which start it is."""

import pytest

from tests.unit.engine.execution.one_replica import Replica
from turnkeeper.domain.audit import NO_ORIGIN, Origin
from turnkeeper.domain.turn import TurnState


@pytest.mark.parametrize(
    ("origin", "principal", "person"),
    [(NO_ORIGIN, "ada", ""), (Origin(principal="portal", on_behalf_of="ada"), "portal", "ada")],
    ids=["herself", "by-a-delegate"],
)
async def test_a_tool_knows_who_sent_the_message_and_for_whom(origin: Origin, principal: str, person: str) -> None:
    replica = Replica()
    async with replica.running():
        replica.model.tool, replica.tools.error = "act", None
        replica.tools.released.set()
        key, turn_id = await replica.accepted(origin=origin)
        turn = await replica.ended(key, turn_id)
    assert turn.state is TurnState.COMPLETED
    (context,) = replica.tools.contexts
    assert (context.principal, context.on_behalf_of, context.agent) == (principal, person, replica.runner.name)
    (call,) = replica.database.sessions[key].calls.values()
    assert (context.key, context.attempt, context.start_time) == (call.key, call.attempt, call.start_time)
    assert call.start_time is not None
