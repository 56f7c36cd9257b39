"""A turn that runs counts in the memory budget, and so does its text while a model has the request."""

from tests.processes import until
from tests.unit.engine.execution.one_replica import Replica
from turnkeeper.domain.turn import TurnState
from turnkeeper.engine.execution.worker import TURN_BYTES
from turnkeeper.model.failure import Reason, failure

TEXT = "a long tale " * 10_000


async def test_running_turns_and_the_requests_of_models_count_until_they_end() -> None:
    replica = Replica()
    memory, replica.text = replica.services.memory, TEXT
    replica.model.goes_on.clear()
    async with replica.running():
        turns = [await replica.accepted() for _ in range(2)]
        await until(lambda: replica.model.calls == len(turns))
        assert memory.used >= len(turns) * (TURN_BYTES + 2 * len(TEXT))
        replica.model.goes_on.set()
        for key, turn_id in turns:
            assert (await replica.ended(key, turn_id)).state is TurnState.COMPLETED
        assert await _at_rest(replica) == 0


async def test_a_turn_that_fails_counts_no_longer() -> None:
    replica = Replica()
    replica.model.error = failure(Reason.BAD_PROVIDER)
    async with replica.running():
        _, turn = await replica.turn()
        assert turn.state is TurnState.FAILED
        assert await _at_rest(replica) == 0


async def _at_rest(replica: Replica) -> int:
    """Returns the bytes that are counted once no turn runs."""
    await until(lambda: not len(replica.held_leases))
    return replica.services.memory.used
