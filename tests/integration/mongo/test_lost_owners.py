"""Which documents of replicas show that the owner of a lapsed lease was lost: both edges, and one that is gone."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.mongo.conftest import Client, NewStore
from turnkeeper.store.mongo.client import Connection
from turnkeeper.store.mongo.documents import SCHEMA
from turnkeeper.store.mongo.lost_owners import LostOwners

LEASE = timedelta(seconds=30)
LAPSE = datetime.now(UTC).replace(microsecond=0)
EARLIEST, LATEST = LAPSE - 2 * LEASE, LAPSE - LEASE / 2
"""A lease before the last renewal, and half a lease after it."""
MILLISECOND = timedelta(milliseconds=1)
HEAD = {
    "active_turn": "turn",
    "owner": "dead",
    "fence": 3,
    "writer": {"fence": 3, "process": "first"},
    "lease_until": LAPSE,
}


@pytest_asyncio.fixture
async def connection(mongo_uri: str, database_name: str) -> AsyncIterator[Connection]:
    connection = Connection(mongo_uri, database=database_name, operation=LEASE, schema=SCHEMA)
    yield connection
    await connection.close()


async def is_lost(connection: Connection, **replica: Any) -> bool:
    """Returns whether the owner counts as lost if its replica's document is this one."""
    if replica:
        await connection.replicas.replace_one({"_id": "dead"}, {"process": "first", **replica}, upsert=True)
    (lost,) = await LostOwners(connection, "living").after_lapse([HEAD])
    return bool(lost)


@pytest.mark.parametrize(
    ("at", "lost"),
    [
        (LAPSE - 10 * LEASE, False),
        (EARLIEST - MILLISECOND, False),
        (EARLIEST, True),
        (LATEST, True),
        (LATEST + MILLISECOND, False),
        (LAPSE + LEASE, False),
    ],
)
async def test_a_lapse_counts_if_the_heartbeat_stopped_within_a_lease_of_the_last_renewal(
    connection: Connection, at: datetime, lost: bool
) -> None:
    """One that stopped earlier says nothing: its owner renewed the lease without it, so it was alive."""
    assert await is_lost(connection, at=at, silent_after=LEASE // MILLISECOND) is lost


@pytest.mark.parametrize(
    ("at", "lost"), [(LAPSE - LEASE, True), (LAPSE - timedelta(hours=1), False), (LAPSE + MILLISECOND, False)]
)
async def test_a_process_that_was_lost_before_its_first_heartbeat_counts_from_its_start(
    connection: Connection, at: datetime, lost: bool
) -> None:
    assert await is_lost(connection, at=at) is lost


async def test_a_process_whose_document_is_gone_ended_in_order_and_was_not_lost(connection: Connection) -> None:
    assert not await is_lost(connection)


async def test_a_process_that_was_started_again_under_its_name_was_lost(connection: Connection) -> None:
    assert await is_lost(connection, process="second", at=LAPSE, silent_after=LEASE // MILLISECOND)


async def test_an_owner_that_counted_and_ended_in_order_later_counts_no_more(
    connection: Connection, client: Client, database_name: str, new_store: NewStore
) -> None:
    """It was paused: the dead end nothing."""
    paused = await new_store(replica="dead")
    replica = await client[database_name].replicas.find_one({"_id": "dead"})
    assert replica is not None
    lost = {"turn_id": "turn", "owner": "dead", "process": replica["process"], "at": replica["at"]}
    assert await LostOwners(connection, "living").count({**HEAD, "lost": [lost]}) == 1
    await paused.close()
    assert await LostOwners(connection, "living").count({**HEAD, "lost": [lost]}) == 0
