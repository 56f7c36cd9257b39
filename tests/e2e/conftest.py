"""Starts a server for each module of tests, with the module's SCRIPT and, if it has them, SETTINGS."""

import json
import logging
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS, Environment, check_pairs
from tests.e2e.support.second_tenant import TENANT, SecondTenant
from tests.e2e.support.twins import Recorded, Twins, record
from tests.test_tools import FOLDER, ToolControl
from turnkeeper.tools.samples import OUTBOX


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def recorded_twins(mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Sequence[Recorded]:
    """Returns the sessions of which the second tenant has copies."""
    return await record(mongo_uri, f"turnkeeper_test_{secrets.token_hex(6)}", tmp_path_factory.mktemp("twins"))


@pytest.fixture(scope="module", autouse=True)
def second_tenant(
    mongo_uri: str, recorded_twins: Sequence[Recorded], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecondTenant]:
    """Gives each session of the module's tests a twin of the same id in another tenant.

    Servers with the flag or setting `identity` of a test's own have none.
    """
    twins = Twins(TENANT, recorded_twins, shared=mongo_uri)
    harness.second_tenant = tenant = SecondTenant(tmp_path_factory.mktemp("second-tenant"), twins)
    yield tenant
    harness.second_tenant = None
    twins.disconnect(mongo_uri)


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
async def env(
    request: pytest.FixtureRequest, mongo_uri: str, tool_control: ToolControl, second_tenant: SecondTenant
) -> AsyncIterator[Environment]:
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
        await second_tenant.check(mongo_uri, database)
    finally:
        logging.getLogger("turnkeeper").removeHandler(failures)
        async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
            await client.drop_database(database)
    assert not failures.messages


class _Failures(logging.Handler):
    """Collects what the server logs as a failure of its own."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        if record.exc_info and record.exc_info[1]:
            self.messages.append(repr(record.exc_info[1]))
