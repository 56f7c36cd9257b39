"""`turnkeeper serve` follows the catalogue: a change is in effect without a restart, a mistake is not."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.processes import until, until_call
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import agent_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENTRY = '[[tool]]\ntool = "count_pages"\nclass = "{}"\n'
CLASS = event_pb2.ToolClass


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    file = tmp_path / "catalogue.toml"
    file.write_text(ENTRY.format("read_only"))
    return file


@pytest_asyncio.fixture(loop_scope="module")
async def stubs(
    mongo_uri: str, module_database: str, catalogue: Path, tool_control: ToolControl
) -> AsyncIterator[harness.Stubs]:
    flags, variables = ("--agents", str(AGENTS), "--catalogue", str(catalogue)), tool_control.variables
    with log_beside(catalogue).open("wb") as log:
        async with (
            harness.scripted('[[reply]]\ntext = "Yes."\n') as model,
            harness.server_process(
                mongo_uri, module_database, model, flags=flags, variables=variables, stderr=log.fileno()
            ) as server,
            harness.connect(server.address) as connected,
        ):
            yield connected


def log_beside(catalogue: Path) -> Path:
    """Returns the file with the server's log."""
    return catalogue.with_suffix(".log")


def write(catalogue: Path, tool_class: str) -> None:
    """Puts another file in the catalogue's place."""
    new = catalogue.with_suffix(".new")
    new.write_text(ENTRY.format(tool_class))
    new.rename(catalogue)


async def class_of(stubs: harness.Stubs) -> event_pb2.ToolClass.ValueType | None:
    """Returns the class of the tool as an agent has it now; None if it is not offered."""
    response = await stubs.agents.GetAgent(agent_pb2.GetAgentRequest(name="worker"))
    return next((tool.tool_class for tool in response.tools if tool.name == "count_pages"), None)


async def test_a_changed_catalogue_is_in_effect_without_a_restart(stubs: harness.Stubs, catalogue: Path) -> None:
    async def is_irreversible() -> bool:
        return await class_of(stubs) == CLASS.TOOL_CLASS_IRREVERSIBLE

    async def is_forbidden() -> bool:
        return await class_of(stubs) in (None, CLASS.TOOL_CLASS_FORBIDDEN)

    assert await class_of(stubs) == CLASS.TOOL_CLASS_READ_ONLY
    write(catalogue, "irreversible")
    await until_call(is_irreversible)
    write(catalogue, "harmless")
    await until(lambda: "catalogue not reloaded" in log_beside(catalogue).read_text())
    assert await class_of(stubs) == CLASS.TOOL_CLASS_IRREVERSIBLE
    write(catalogue, "forbidden")
    await until_call(is_forbidden)
