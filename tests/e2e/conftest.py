"""One server for each module of tests, with the module's own SCRIPT and, where it has them, KNOBS."""

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
from tests.e2e.world import AGENTS, World, check_pairs
from tests.workshop import FOLDER, Workshop
from turnkeeper.tools.samples import OUTBOX


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """The tests' tools, installed for servers in this process and, by its variables, for others."""
    made = Workshop(tmp_path_factory.mktemp("workshop"))
    made.install()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(made.folder))
        patch.setenv(FOLDER, str(made.folder))
        patch.setenv(OUTBOX, str(made.folder / "outbox.jsonl"))
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(request: pytest.FixtureRequest, mongo_uri: str, workshop: Workshop) -> AsyncIterator[World]:
    """The module's server. In the end: nothing of it failed, the model never saw a call without its
    result, and the documents equal the fold of the logs."""
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    knobs = {"drain_grace": timedelta(milliseconds=100), **getattr(request.module, "KNOBS", {})}
    failures = _Failures()
    logging.getLogger("turnkeeper").addHandler(failures)
    try:
        async with (
            harness.scripted(request.module.SCRIPT) as model,
            harness.serving(mongo_uri, database, model, agents=AGENTS, **knobs) as running,
            harness.connect(running.address) as stubs,
        ):
            yield World(
                mongo_uri=mongo_uri,
                database=database,
                address=running.address,
                model=model,
                stubs=stubs,
                workshop=workshop,
                knobs=knobs,
            )
            for exchange in model.exchanges.all():
                check_pairs(json.loads(exchange.body)["messages"])
        await check(mongo_uri, database)
    finally:
        logging.getLogger("turnkeeper").removeHandler(failures)
        async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
            await client.drop_database(database)
    assert not failures.told


class _Failures(logging.Handler):
    """What the server logged as a failure of its own."""

    def __init__(self) -> None:
        super().__init__(level=logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())
        if record.exc_info and record.exc_info[1]:
            self.told.append(repr(record.exc_info[1]))
