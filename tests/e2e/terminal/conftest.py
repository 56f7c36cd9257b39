"""A server in a process of its own, with a scripted model, and a command line to use it with."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.e2e.terminal.programs import CommandLine
from tests.test_tools import FOLDER, ToolControl
from turnkeeper.model.scripted import ScriptedModel


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model(request: pytest.FixtureRequest) -> AsyncIterator[ScriptedModel]:
    async with harness.scripted(request.module.SCRIPT) as model:
        yield model


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    mongo_uri: str, module_database: str, model: ScriptedModel, tool_control: ToolControl
) -> AsyncIterator[harness.ServerProcess]:
    variables = {"PYTHONPATH": str(tool_control.folder), FOLDER: str(tool_control.folder)}
    async with harness.server_process(
        mongo_uri, module_database, model, flags=("--agents", str(AGENTS), "--identity", "none"), variables=variables
    ) as process:
        yield process


@pytest.fixture(scope="module")
def turnkeeper(server: harness.ServerProcess) -> CommandLine:
    return CommandLine(server.address)


@pytest.fixture(scope="module")
def stubs(server: harness.ServerProcess) -> Any:
    """Yields stubs whose calls block: an event loop of gRPC is what the commands have."""
    with contextlib.closing(grpc.insecure_channel(server.address)) as channel:
        yield harness.Stubs(channel)
