"""What fails in a shared transaction fails alone; an unknown outcome is resolved for each changeset."""

import asyncio
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import a_session_key
from tests.contracts.stores import LONG, a_changeset, begin, committed, head_of, until
from tests.integration.mongo.batches import (
    CONFLICT,
    HELD_MS,
    MANY,
    NEVER_ARRIVED,
    REPLY_LOST,
    SOON,
    assert_not_stored,
    assert_stored,
    new_changesets,
    new_session_keys,
    next_changeset,
    together,
    until_sent,
)
from tests.integration.mongo.commands import Recorder
from tests.integration.mongo.conftest import Client, FailPoint, NewStore
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.faults import VARIABLE
from turnkeeper.store.changeset import Committed, Conflict, HeadChange, LeaseChange
from turnkeeper.store.mongo.store import MongoStore


async def test_a_changeset_on_a_locked_head_fails_alone(
    new_store: NewStore, client: Client, database_name: str
) -> None:
    """An open transaction has changed nothing yet: the conflict does not identify the locked head."""
    store, other = await new_store(operation=timedelta(seconds=2)), await new_store()
    moved, locked, good, fine = await new_changesets(other, 4)
    await committed(other.commit(replace(moved, changeset_id="faster", new_turns=())))
    async with client.start_session() as session:
        await session.start_transaction()
        heads = client[database_name]["heads"]
        await heads.update_one({"session_id": locked.session_id}, {"$set": {"x": 1}}, session=session)
        callers = [asyncio.create_task(store.commit(changeset)) for changeset in (moved, locked, good, fine)]
        results = await asyncio.gather(*callers, return_exceptions=True)
        await session.abort_transaction()
    assert results[0] == Conflict()
    assert isinstance(results[1], ServiceUnavailable)
    await assert_not_stored(other, locked)
    await assert_stored(other, good)
    await assert_stored(other, fine)


async def test_a_changeset_whose_very_filter_cannot_be_sent_fails_alone(store: MongoStore) -> None:
    """Nor can the heads that changed be read then."""
    good, bad, other = await new_changesets(store, 3)
    results = await together(store, good, replace(bad, cancel="\ud800"), other)
    await assert_not_stored(store, bad)
    await assert_stored(store, good, results[0])
    await assert_stored(store, other, results[2])


async def test_a_changeset_that_cannot_be_written_fails_alone(store: MongoStore) -> None:
    good, bad, other = await new_changesets(store, 3)
    bad = replace(bad, new_turns=(replace(bad.new_turns[0], principal="\ud800"),))
    results = await asyncio.gather(
        *(store.commit(changeset) for changeset in (good, bad, other)), return_exceptions=True
    )
    assert isinstance(results[1], Exception)
    assert await store.events(bad.session_key, after=bad.last_seq, limit=9) == []
    await assert_stored(store, good)
    await assert_stored(store, other)


@pytest.mark.parametrize("command", ["update", "insert", "commitTransaction"])
@pytest.mark.parametrize("how", [CONFLICT, NEVER_ARRIVED], ids=["conflict", "never-arrived"])
async def test_a_batch_that_fails_for_a_while_is_stored_once(
    store: MongoStore, failing: FailPoint, how: dict[str, Any], command: str
) -> None:
    changesets = await new_changesets(store)
    async with failing([command], times=3, **how):
        results = await together(store, *changesets)
    for changeset, result in zip(changesets, results, strict=True):
        await assert_stored(store, changeset, result)


async def test_i3_an_unknown_outcome_of_a_batch_is_resolved_for_each(new_store: NewStore, failing: FailPoint) -> None:
    """The commit was carried out, but until the deadline each answer is a write concern error."""
    other = await new_store()
    changesets = await new_changesets(other)
    key = await begin(other)
    store = await new_store(operation=SOON)
    silent = a_changeset(
        await head_of(other, key), head=HeadChange(lease=LeaseChange.TAKE, owner="one", lease_for=LONG)
    )
    async with failing(["commitTransaction"], **REPLY_LOST):
        *results, last = await together(store, *changesets, silent)
    assert last == Committed(last_seq=1, fence=1, events=())
    for changeset, result in zip(changesets, results, strict=True):
        await assert_stored(other, changeset, result)


async def test_i3_a_batch_that_stays_unknown_is_neither_answered_nor_given_up(
    new_store: NewStore, failing: FailPoint
) -> None:
    store, other = await new_store(operation=SOON), await new_store()
    changesets = await new_changesets(other)
    async with failing(["commitTransaction"], **NEVER_ARRIVED):
        answers = await asyncio.gather(*(store.commit(changeset) for changeset in changesets), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ServiceUnavailable] * MANY
        for changeset in changesets:
            await assert_not_stored(other, changeset)

    async def resolved() -> bool:
        keys = [changeset.session_key for changeset in changesets]
        return set((await other.last_seqs(keys)).values()) == {2}

    await until(resolved)
    for changeset in changesets:
        await assert_stored(other, changeset)


async def test_a_cancelled_caller_cancels_nothing(store: MongoStore, recorder: Recorder, failing: FailPoint) -> None:
    changesets = await new_changesets(store)
    async with failing(["commitTransaction"], times=1, blockConnection=True, blockTimeMS=HELD_MS):
        with recorder.recording():
            callers = [asyncio.create_task(store.commit(changeset)) for changeset in changesets]
            await until_sent(recorder, "commitTransaction")
            callers[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await callers[0]
            results = await asyncio.gather(*callers[1:])
    await assert_stored(store, changesets[0])
    for changeset, result in zip(changesets[1:], results, strict=True):
        await assert_stored(store, changeset, result)


async def test_callers_of_work_that_never_began_are_answered(store: MongoStore) -> None:
    """A store that is closed cancels what is left, and that may not have had its first turn."""
    changeset, *others = await new_changesets(store, 3)
    waiting = [
        asyncio.create_task(store.commit(other_changeset))
        for other_changeset in (replace(changeset, leased=True), *others)
    ]
    await asyncio.sleep(0)  # each has handed its changeset in, and none of the store's own tasks has run yet
    for task in list(store._tasks._running):  # noqa: SLF001 - as its close does
        task.cancel()
    async with asyncio.timeout(5.0):
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ServiceUnavailable] * 3


DOOMED = """
import asyncio, os, sys
from tests.contracts.stores import TextCodec, a_changeset, begin, head_of
from tests.builders import a_session_key, an_event
from turnkeeper.faults import arm
from turnkeeper.store.mongo.store import MongoStore

async def main():
    store = MongoStore(sys.argv[1], database=sys.argv[2], codec=TextCodec(), replica="doomed")
    await store.open()
    keys = [a_session_key(session_id=session_id) for session_id in sys.argv[3:]]
    changesets = [a_changeset(await head_of(store, key), an_event()) for key in keys]
    arm(os.environ)
    await asyncio.gather(*(store.commit(changeset) for changeset in changesets))

asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["step.after_first_write", "step.before_commit", "step.after_commit"])
async def test_i3_a_server_killed_in_the_middle_of_a_batch_stores_all_of_it_or_nothing(
    mongo_uri: str, database_name: str, new_store: NewStore, point: str
) -> None:
    """And nothing stays locked once another replica has killed its server sessions."""
    store = await new_store(replica="other")
    sessions = [key.session_id for key in await new_session_keys(store)]
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DOOMED, mongo_uri, database_name, *sessions), env={VARIABLE: f"{point}=kill"}
    )
    assert await program.wait() == -signal.SIGKILL
    stored = point == "step.after_commit"
    keys = [SessionKey("default", session) for session in sessions]
    assert set((await store.last_seqs(keys)).values()) == {2 if stored else 1}
    await new_store(replica="doomed")
    changesets = [await next_changeset(store, a_session_key(session_id=session)) for session in sessions]
    for changeset, result in zip(changesets, await together(store, *changesets), strict=True):
        await assert_stored(store, changeset, result)
