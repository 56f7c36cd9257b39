"""D.2: the result of a commit whose caller got UNAVAILABLE is known as soon as the database can tell it."""

import asyncio
from datetime import timedelta

import pytest

from tests.contracts.stores import a_changeset, begin, head_of
from tests.integration.mongo.batches import (
    NEVER_ARRIVED,
    REPLY_LOST,
    SOON,
    TAKEN,
    assert_not_stored,
    assert_stored,
    new_changesets,
    next_changeset,
    together,
)
from tests.integration.mongo.conftest import Client, FailPoint, NewStore
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import Changeset, CommitResult, Committed, Conflict
from turnkeeper.store.mongo.client import ClientSession
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.store.mongo.transactions.outcomes import Outcomes


async def test_d2_a_commit_that_lands_after_its_deadline_is_known_then(new_store: NewStore, failing: FailPoint) -> None:
    store = await new_store(operation=SOON)
    (changeset,) = await new_changesets(store, 1, head=TAKEN)
    async with failing(["commitTransaction"], **NEVER_ARRIVED):
        with pytest.raises(ServiceUnavailable):
            await store.commit(changeset)
        waiting = asyncio.create_task(store.outcome(changeset))
    await assert_stored(store, changeset, await waiting)
    assert await store.outcome(changeset) is None, "it was told once"


async def test_d2_each_changeset_of_a_batch_that_lands_late_gets_its_own_result(
    new_store: NewStore, failing: FailPoint
) -> None:
    store = await new_store(operation=SOON)
    changesets = await new_changesets(store, 4, head=TAKEN)
    async with failing(["commitTransaction"], **NEVER_ARRIVED):
        results = await asyncio.gather(*map(store.commit, changesets), return_exceptions=True)
        assert [type(result) for result in results] == [ServiceUnavailable] * 4
        waiting = [asyncio.create_task(store.outcome(changeset)) for changeset in changesets]
    for changeset, outcome in zip(changesets, waiting, strict=True):
        await assert_stored(store, changeset, await outcome)


async def test_d2_what_a_majority_has_is_known_also_while_no_commit_is_answered(
    new_store: NewStore, failing: FailPoint
) -> None:
    store = await new_store(operation=timedelta(seconds=1))
    changesets = await new_changesets(store, 2, head=TAKEN)
    store._outcomes = Unreadable(store._connection)  # noqa: SLF001 - nothing can be read until the deadline
    async with failing(["commitTransaction"], **REPLY_LOST):
        results = await asyncio.gather(*map(store.commit, changesets), return_exceptions=True)
        assert [type(result) for result in results] == [ServiceUnavailable] * 2
        store._outcomes = Outcomes(store._connection)  # noqa: SLF001
        for changeset in changesets:
            result = await store.outcome(changeset)
            assert isinstance(result, Committed)
    await together(store)
    for changeset in changesets:
        await assert_stored(store, changeset)


async def test_d2_a_commit_that_was_aborted_is_known_to_be_not_stored(
    new_store: NewStore, client: Client, failing: FailPoint
) -> None:
    store = await new_store(operation=SOON)
    (changeset,) = await new_changesets(store, 1, head=TAKEN)
    async with failing(["commitTransaction"], **NEVER_ARRIVED):
        with pytest.raises(ServiceUnavailable):
            await store.commit(changeset)
        await client.admin.command("killAllSessions", [])
    assert await store.outcome(changeset) in (None, Conflict())
    await assert_not_stored(store, changeset)


async def test_a_commit_that_was_answered_has_no_late_outcome(store: MongoStore) -> None:
    key = await begin(store)
    changeset = a_changeset(await head_of(store, key), head=TAKEN)
    assert isinstance(await store.commit(changeset), Committed)
    assert await store.outcome(changeset) is None


async def test_no_changeset_is_kept_whose_outcome_nothing_asks_for(new_store: NewStore, failing: FailPoint) -> None:
    """While the database is unavailable, there may be thousands of them, of 256 KiB each."""
    store, patient = await new_store(operation=SOON), await new_store()
    changeset = await next_changeset(store, await begin(store))
    async with failing(["commitTransaction"], **NEVER_ARRIVED):
        with pytest.raises(ServiceUnavailable):
            await store.commit(changeset)
    assert not store._unsettled  # noqa: SLF001 - memory alone shows it
    await together(patient, changeset)


class Unreadable(Outcomes):
    """Finds out nothing."""

    async def of_changeset(self, changeset: Changeset, session: ClientSession) -> CommitResult | None:
        raise ServiceUnavailable
