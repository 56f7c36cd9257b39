"""What fails in a shared transaction fails alone; an unknown outcome is resolved for each step."""

import asyncio
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import a_place
from tests.contracts.stores import LONG, a_step, begin, committed, head_of, until
from tests.integration.mongo.batches import (
    HELD_MS,
    MANY,
    assert_not_stored,
    assert_stored,
    new_places,
    new_steps,
    next_step,
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

SOON = timedelta(milliseconds=400)
REPLY_LOST: dict[str, Any] = {"writeConcernError": {"code": 91, "errmsg": "told to fail"}}
NEVER_ARRIVED: dict[str, Any] = {"closeConnection": True}
CONFLICT: dict[str, Any] = {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}


async def test_a_head_that_somebody_keeps_locked_fails_alone(
    new_store: NewStore, client: Client, database_name: str
) -> None:
    """An open transaction moves nothing yet: nothing says which head is in the way."""
    store, other = await new_store(operation=timedelta(seconds=2)), await new_store()
    moved, locked, good, fine = await new_steps(other, 4)
    await committed(other.commit(replace(moved, changeset_id="faster", new_turns=())))
    async with client.start_session() as session:
        await session.start_transaction()
        heads = client[database_name]["heads"]
        await heads.update_one({"session_id": locked.session_id}, {"$set": {"x": 1}}, session=session)
        callers = [asyncio.create_task(store.commit(step)) for step in (moved, locked, good, fine)]
        verdicts = await asyncio.gather(*callers, return_exceptions=True)
        await session.abort_transaction()
    assert verdicts[0] == Conflict()
    assert isinstance(verdicts[1], ServiceUnavailable)
    await assert_not_stored(other, locked)
    await assert_stored(other, good)
    await assert_stored(other, fine)


async def test_a_step_whose_very_filter_cannot_be_sent_fails_alone(store: MongoStore) -> None:
    """Nor can it be asked then who has moved."""
    good, bad, other = await new_steps(store, 3)
    verdicts = await together(store, good, replace(bad, cancel="\ud800"), other)
    await assert_not_stored(store, bad)
    await assert_stored(store, good, verdicts[0])
    await assert_stored(store, other, verdicts[2])


async def test_a_step_that_cannot_be_written_fails_alone(store: MongoStore) -> None:
    good, bad, other = await new_steps(store, 3)
    bad = replace(bad, new_turns=(replace(bad.new_turns[0], principal="\ud800"),))
    verdicts = await asyncio.gather(*(store.commit(step) for step in (good, bad, other)), return_exceptions=True)
    assert isinstance(verdicts[1], Exception)
    assert await store.events(bad.session_key, after=bad.last_seq, limit=9) == []
    await assert_stored(store, good)
    await assert_stored(store, other)


@pytest.mark.parametrize("command", ["update", "insert", "commitTransaction"])
@pytest.mark.parametrize("how", [CONFLICT, NEVER_ARRIVED], ids=["conflict", "never-arrived"])
async def test_a_batch_that_fails_for_a_while_is_stored_once(
    store: MongoStore, failing: FailPoint, how: dict[str, Any], command: str
) -> None:
    steps = await new_steps(store)
    async with failing([command], times=3, **how):
        verdicts = await together(store, *steps)
    for step, verdict in zip(steps, verdicts, strict=True):
        await assert_stored(store, step, verdict)


async def test_i3_an_unknown_outcome_of_a_batch_is_resolved_for_each(new_store: NewStore, failing: FailPoint) -> None:
    """The commit was carried out, but each answer says that this may not last, until the deadline."""
    other = await new_store()
    steps = await new_steps(other)
    place = await begin(other)
    store = await new_store(operation=SOON)
    silent = a_step(await head_of(other, place), head=HeadChange(lease=LeaseChange.TAKE, owner="one", lease_for=LONG))
    async with failing(["commitTransaction"], **REPLY_LOST):
        *verdicts, last = await together(store, *steps, silent)
    assert last == Committed(last_seq=1, fence=1, events=())
    for step, verdict in zip(steps, verdicts, strict=True):
        await assert_stored(other, step, verdict)


async def test_i3_a_batch_that_stays_unknown_is_neither_answered_nor_given_up(
    new_store: NewStore, failing: FailPoint
) -> None:
    store, other = await new_store(operation=SOON), await new_store()
    steps = await new_steps(other)
    async with failing(["commitTransaction"], **NEVER_ARRIVED):
        answers = await asyncio.gather(*(store.commit(step) for step in steps), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ServiceUnavailable] * MANY
        for step in steps:
            await assert_not_stored(other, step)

    async def resolved() -> bool:
        places = [step.session_key for step in steps]
        return set((await other.last_seqs(places)).values()) == {2}

    await until(resolved)
    for step in steps:
        await assert_stored(other, step)


async def test_a_cancelled_caller_cancels_nothing(store: MongoStore, recorder: Recorder, failing: FailPoint) -> None:
    steps = await new_steps(store)
    async with failing(["commitTransaction"], times=1, blockConnection=True, blockTimeMS=HELD_MS):
        with recorder.recording():
            callers = [asyncio.create_task(store.commit(step)) for step in steps]
            await until_sent(recorder, "commitTransaction")
            callers[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await callers[0]
            verdicts = await asyncio.gather(*callers[1:])
    await assert_stored(store, steps[0])
    for step, verdict in zip(steps[1:], verdicts, strict=True):
        await assert_stored(store, step, verdict)


async def test_nobody_waits_for_work_that_never_began(store: MongoStore) -> None:
    """A store that is closed cancels what is left, and that may not have had its first turn."""
    step, *others = await new_steps(store, 3)
    waiting = [asyncio.create_task(store.commit(each)) for each in (replace(step, leased=True), *others)]
    await asyncio.sleep(0)  # each has handed its step in, and of the store's own tasks none has had its turn
    for task in list(store._tasks._running):  # noqa: SLF001 - as its close does
        task.cancel()
    async with asyncio.timeout(5.0):
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ServiceUnavailable] * 3


DOOMED = """
import asyncio, os, sys
from tests.contracts.stores import TextCodec, a_step, begin, head_of
from tests.builders import an_event
from turnkeeper.faults import arm
from turnkeeper.store.mongo.store import MongoStore

async def main():
    store = MongoStore(sys.argv[1], database=sys.argv[2], codec=TextCodec(), replica="doomed")
    await store.open()
    places = [a_place(session_id=each) for each in sys.argv[3:]]
    steps = [a_step(await head_of(store, place), an_event()) for place in places]
    arm(os.environ)
    await asyncio.gather(*(store.commit(step) for step in steps))

asyncio.run(main())
"""


@pytest.mark.parametrize("place", ["step.after_first_write", "step.before_commit", "step.after_commit"])
async def test_i3_a_server_killed_in_the_middle_of_a_batch_stores_all_of_it_or_nothing(
    mongo_uri: str, database_name: str, new_store: NewStore, place: str
) -> None:
    """And leaves nothing locked once somebody has ended what it was writing."""
    store = await new_store(replica="other")
    sessions = [each.session_id for each in await new_places(store)]
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DOOMED, mongo_uri, database_name, *sessions), env={VARIABLE: f"{place}=kill"}
    )
    assert await program.wait() == -signal.SIGKILL
    stored = place == "step.after_commit"
    places = [SessionKey("default", session) for session in sessions]
    assert set((await store.last_seqs(places)).values()) == {2 if stored else 1}
    await new_store(replica="doomed")
    steps = [await next_step(store, a_place(session_id=session)) for session in sessions]
    for step, verdict in zip(steps, await together(store, *steps), strict=True):
        await assert_stored(store, step, verdict)
