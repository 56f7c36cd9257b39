"""Starts a server for each module of tests, with the module's SCRIPT and, if it has them, SETTINGS."""

import json
import logging
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from tests import harness, identities
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS, Environment, check_pairs
from tests.test_tools import FOLDER, ToolControl
from turnkeeper.tools.samples import OUTBOX

TWO_TENANTS = "TURNKEEPER_TEST_TWO_TENANTS"


@pytest.fixture(scope="session", autouse=True)
def two_tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gives each session of a test a twin of the same id in another tenant, if the variable asks for it."""
    if os.environ.get(TWO_TENANTS):
        harness.two_tenants = identities.two_tenants(tmp_path_factory.mktemp("two-tenants"))
    yield
    harness.two_tenants = None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_database(mongo_uri: str) -> AsyncIterator[str]:
    """Yields a name that no other module has; the database is dropped afterwards."""
    name = f"turnkeeper_test_{secrets.token_hex(6)}"
    yield name
    async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
        await client.drop_database(name)


@pytest.fixture(scope="module")
def tool_control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToolControl]:
    """Installs the tests' tools for servers in this process and, by their variables, for others."""
    control = ToolControl(tmp_path_factory.mktemp("tools"))
    control.install()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(control.folder))
        patch.setenv(FOLDER, str(control.folder))
        patch.setenv(OUTBOX, str(control.folder / "outbox.jsonl"))
        yield control


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def env(request: pytest.FixtureRequest, mongo_uri: str, tool_control: ToolControl) -> AsyncIterator[Environment]:
    """Starts the module's server. At its end it checks that nothing failed inside, that the model never got a call
    without its result, and that the documents equal the fold of the logs."""
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    settings = {"drain_grace": timedelta(milliseconds=100), **getattr(request.module, "SETTINGS", {})}
    failures = _Failures()
    logging.getLogger("turnkeeper").addHandler(failures)
    try:
        async with (
            harness.scripted(request.module.SCRIPT) as model,
            harness.serving(mongo_uri, database, model, agents=AGENTS, **settings) as running,
            harness.connect(running.address) as stubs,
        ):
            yield Environment(
                mongo_uri=mongo_uri,
                database=database,
                address=running.address,
                model=model,
                stubs=stubs,
                tool_control=tool_control,
                settings=settings,
            )
            for exchange in model.exchanges.all():
                check_pairs(json.loads(exchange.body)["messages"])
        await check(mongo_uri, database)
        await _check_twins(mongo_uri, database)
    finally:
        logging.getLogger("turnkeeper").removeHandler(failures)
        async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
            await client.drop_database(database)
    assert not failures.messages


async def _check_twins(mongo_uri: str, database: str) -> None:
    """Asserts that nothing has happened in the other tenant but the creation of its sessions."""
    async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
        stored = client[database]
        counts = {
            name: await stored[name].count_documents({"tenant": identities.TWIN})
            for name in ("sessions", "events", "turns", "tool_calls", "approvals", "requests")
        }
    expected = counts["sessions"]
    assert counts == {**dict.fromkeys(counts, 0), "sessions": expected, "events": expected}


class _Failures(logging.Handler):
    """Collects what the server logs as a failure of its own."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        if record.exc_info and record.exc_info[1]:
            self.messages.append(repr(record.exc_info[1]))
