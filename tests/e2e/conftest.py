"""Starts a server for each module of tests, with the module's SCRIPT and, if it has them, SETTINGS."""

import json
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS, Environment, check_pairs
from tests.test_tools import FOLDER, ToolControl
from turnkeeper.tools.samples import OUTBOX


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
