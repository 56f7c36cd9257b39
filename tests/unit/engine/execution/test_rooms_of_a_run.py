"""What a turn's run keeps of the places for its calls: only those in which a call is about to start."""

import asyncio
from collections.abc import Sequence

from tests.processes import until
from tests.unit.engine.execution.one_replica import Replica
from turnkeeper.domain.tool import CallState, ToolClass, ToolSpec
from turnkeeper.domain.turn import TurnState
from turnkeeper.tools.catalogue import Catalogue, CatalogueEntry
from turnkeeper.tools.contract import OutcomeUnknown, ToolContext

ONE_AT_A_TIME = Catalogue(entries=[CatalogueEntry(tool="act", concurrency=1)])


class Bench:
    """A source of two tools, each of whose calls ends as the test says."""

    listing = 1

    def __init__(self) -> None:
        self.runs: list[tuple[str, asyncio.Future[str]]] = []

    @property
    def started(self) -> list[str]:
        return [name for name, _ in self.runs]

    def specs(self) -> Sequence[ToolSpec]:
        classes = {"act": ToolClass.IRREVERSIBLE, "look": ToolClass.READ_ONLY}
        return [
            ToolSpec(name=name, description="", schema_json="{}", tool_class=tool_class, source="python")
            for name, tool_class in classes.items()
        ]

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.runs.append((name, end))
        return await end


async def test_a_call_that_a_person_must_decide_on_again_gives_its_place_to_another_turns() -> None:
    replica, bench = Replica(), Bench()
    replica.services.toolbox.reload([bench], catalogue=ONE_AT_A_TIME)
    async with replica.running():
        replica.model.tool = "act act look"
        key, turn_id = await replica.accepted()
        await until(lambda: bench.started == ["act", "look"])
        bench.runs[0][1].set_exception(OutcomeUnknown("The connection was lost."))
        stored = replica.database.sessions[key]
        await until(lambda: all(call.state is not CallState.READY for call in stored.calls.values()))
        replica.model.tool = "act"
        await replica.accepted()
        await until(lambda: bench.started == ["act", "look", "act"])
        assert stored.turns[turn_id].state is TurnState.RUNNING, "by its look, which goes on"


async def test_a_turn_whose_call_waits_for_room_is_handed_over_at_once_by_a_replica_that_drains() -> None:
    """The tool that has the place may run for minutes, and the turn's next owner may have room."""
    replica, bench = Replica(), Bench()
    replica.services.toolbox.reload([bench], catalogue=ONE_AT_A_TIME)
    async with replica.running():
        replica.model.tool = "act"
        await replica.accepted()
        await until(lambda: bench.started == ["act"])
        replica.model.tool = "act"
        key, _ = await replica.accepted()
        stored = replica.database.sessions[key]
        await until(lambda: bool(stored.calls))
        draining = asyncio.create_task(replica.worker.drain(grace=60))
        await until(lambda: not stored.owner)
        assert [call.state for call in stored.calls.values()] == [CallState.READY]
        assert not draining.done(), "it waits for the tool of the other turn"
        bench.runs[0][1].set_result('"acted"')
        await draining
    assert bench.started == ["act"]
