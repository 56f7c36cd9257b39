"""Steps of different sessions that wait at the same time are one transaction, and each gets its own verdict."""

import asyncio
import signal
import sys
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo import monitoring

from tests.builders import Place, a_call, a_place, a_request, a_turn, an_event
from tests.contracts.stores import LONG, SHORT, a_step, begin, committed, head_of, lapse, run_turn, until
from tests.integration.mongo.commands import Command, Recorder, name_of
from tests.integration.mongo.conftest import Client, FailPoint, NewStore
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.faults import VARIABLE
from turnkeeper.store.mongo import committer, indexes
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.store.step import Committed, Duplicate, Fenced, HeadChange, Lease, Stale, Step, Verdict

MANY = 8
SOON = timedelta(milliseconds=400)
REPLY_LOST: dict[str, Any] = {"writeConcernError": {"code": 91, "errmsg": "told to fail"}}
NEVER_ARRIVED: dict[str, Any] = {"closeConnection": True}
CONFLICT: dict[str, Any] = {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}
HELD_MS = 1000


async def _places(store: MongoStore, count: int = MANY) -> list[Place]:
    return [await begin(store) for _ in range(count)]


async def _step(store: MongoStore, place: Place, **given: Any) -> Step:
    return a_step(await head_of(store, place), an_event("one"), new_turns=(a_turn(place),), **given)


async def _steps(store: MongoStore, count: int = MANY) -> list[Step]:
    return [await _step(store, place) for place in await _places(store, count)]


async def _together(store: MongoStore, *steps: Step) -> list[Verdict]:
    """All handed in before the first of them is sent."""
    return list(await asyncio.gather(*(store.commit(step) for step in steps)))


async def _stored(store: MongoStore, step: Step, verdict: Verdict | None = None) -> None:
    """Once, and it is known."""
    events = await store.events(step.tenant, step.session_id, after=step.last_seq, limit=99)
    assert len(events) == len(step.events)
    for turn in step.new_turns:
        assert await store.turn(step.tenant, step.session_id, turn.id) == turn
    expected = Committed(last_seq=step.last_seq + len(events), fence=step.next_fence, events=tuple(events))
    assert verdict in (None, expected)
    assert await store.commit(step) == expected


async def _not_stored(store: MongoStore, step: Step) -> None:
    assert await store.events(step.tenant, step.session_id, after=step.last_seq, limit=99) == []
    for turn in step.new_turns:
        assert await store.turn(step.tenant, step.session_id, turn.id) is None


def _sessions_of(commands: list[Command]) -> list[list[str]]:
    """Whose heads each transaction wrote, in order."""
    updates = [each for each in commands if each.get("update") == "heads" and "autocommit" in each]
    return [[statement["q"]["_id"]["session_id"] for statement in each["updates"]] for each in updates]


def _count(commands: list[Command], name: str) -> int:
    return sum(name_of(each) == name for each in commands)


async def _until_sent(recorder: Recorder, name: str) -> None:
    async def sent() -> bool:
        return any(name_of(each) == name for each in recorder.commands)

    await until(sent)


async def test_steps_of_many_sessions_at_once_are_one_transaction(store: MongoStore, recorder: Recorder) -> None:
    steps = await _steps(store)
    with recorder.recording() as commands:
        verdicts = await _together(store, *steps)
    assert [name_of(each) for each in commands] == ["update", "insert", "insert", "commitTransaction"]
    assert _sessions_of(commands) == [[step.session_id for step in steps]]
    for step, verdict in zip(steps, verdicts, strict=True):
        await _stored(store, step, verdict)


async def test_while_one_commit_is_in_flight_the_next_gathers(
    store: MongoStore, recorder: Recorder, failing: FailPoint
) -> None:
    first, *others = await _steps(store)
    async with failing(["commitTransaction"], times=1, blockConnection=True, blockTimeMS=HELD_MS):
        with recorder.recording() as commands:
            flying = asyncio.create_task(store.commit(first))
            await _until_sent(recorder, "commitTransaction")
            assert not flying.done()
            waiting = [asyncio.create_task(store.commit(step)) for step in others]
            await asyncio.gather(flying, *waiting)
    assert _sessions_of(commands) == [[first.session_id], [step.session_id for step in others]]


async def test_a_commit_that_hangs_does_not_hold_up_the_others(
    store: MongoStore, recorder: Recorder, failing: FailPoint
) -> None:
    first, second = await _steps(store, 2)
    async with failing(["commitTransaction"], times=1, blockConnection=True, blockTimeMS=3 * HELD_MS):
        with recorder.recording():
            flying = asyncio.create_task(store.commit(first))
            await _until_sent(recorder, "commitTransaction")
        await _stored(store, second, await store.commit(second))
        assert not flying.done()
    await _stored(store, first, await flying)


class _Times(monitoring.CommandListener):
    """When each update left."""

    def __init__(self) -> None:
        self.updates: list[float] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name == "update":
            self.updates.append(time.perf_counter())

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


async def test_a_lone_step_is_never_delayed(new_store: NewStore) -> None:
    """Of twenty the quickest was on its way at once: nothing waits for company."""
    times = _Times()
    monitoring.register(times)
    store = await new_store()
    delays: list[float] = []
    for step in await _steps(store, 20):
        times.updates.clear()
        began = time.perf_counter()
        await committed(store.commit(step))
        delays.append(times.updates[0] - began)
    assert min(delays) < 0.002


async def test_who_moved_leaves_and_the_rest_is_stored_together(
    store: MongoStore, new_store: NewStore, recorder: Recorder
) -> None:
    steps = await _steps(store)
    other = await new_store()
    hot = steps[3]
    await committed(other.commit(replace(hot, step_id="faster", new_turns=())))
    with recorder.recording() as commands:
        verdicts = await _together(store, *steps)
    rest = [step for step in steps if step is not hot]
    assert _sessions_of(commands) == [[step.session_id for step in steps], [step.session_id for step in rest]]
    assert _count(commands, "commitTransaction") == 1
    for step, verdict in zip(steps, verdicts, strict=True):
        if step is hot:
            assert verdict == Stale()
            assert await store.turn(step.tenant, step.session_id, step.new_turns[0].id) is None
        else:
            await _stored(store, step, verdict)


async def test_what_lost_once_goes_alone_for_a_while(
    store: MongoStore, new_store: NewStore, recorder: Recorder
) -> None:
    steps = await _steps(store, 3)
    other = await new_store()
    await committed(other.commit(replace(steps[0], step_id="faster", new_turns=())))
    assert (await _together(store, *steps))[0] == Stale()
    again = [await _step(store, Place(tenant=step.tenant, session_id=step.session_id)) for step in steps]
    with recorder.recording() as commands:
        verdicts = await _together(store, *again)
    assert all(isinstance(verdict, Committed) for verdict in verdicts)
    assert sorted(_sessions_of(commands), key=len) == [
        [again[0].session_id],
        [again[1].session_id, again[2].session_id],
    ]


async def test_what_waits_already_when_its_head_becomes_hot_goes_alone(
    store: MongoStore, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each of a crowd on one head would have a batch written twice."""
    monkeypatch.setattr(committer, "MOST", 2)
    hot, *others = await _steps(store, 13)
    crowd = [hot, *(replace(hot, step_id=f"twin {number}", new_turns=()) for number in range(11))]
    pairs = [step for pair in zip(crowd, others, strict=True) for step in pair]
    with recorder.recording() as commands:
        verdicts = await _together(store, *pairs)
    assert [type(verdict) for verdict in verdicts] == [Committed] + [Committed, Stale] * 11 + [Committed]
    shared = [sessions for sessions in _sessions_of(commands) if hot.session_id in sessions and len(sessions) > 1]
    assert len(shared) < 6, "the first, the one that made it hot, and what had begun meanwhile"


async def test_a_step_on_a_head_that_somebody_leases_goes_alone(store: MongoStore, recorder: Recorder) -> None:
    steps = await _steps(store, 3)
    with recorder.recording() as commands:
        await _together(store, replace(steps[0], leased=True), *steps[1:])
    assert sorted(map(len, _sessions_of(commands))) == [1, 2]


async def test_a_request_that_was_there_leaves_and_the_rest_is_stored(
    store: MongoStore, recorder: Recorder, client: Client, database_name: str
) -> None:
    """Its insert meets its like: that transaction is never committed; the place in the command says whose it was."""
    places = await _places(store)
    request = a_request(places[2])
    await committed(store.commit(await _step(store, places[2], request=request)))
    steps = [await _step(store, place, request=a_request(place)) for place in places]
    steps[2] = replace(steps[2], request=replace(request, turn_id="another"))
    with recorder.recording() as commands:
        verdicts = await _together(store, *steps)
    rest = [step for step in steps if step is not steps[2]]
    assert _sessions_of(commands) == [[step.session_id for step in steps], [step.session_id for step in rest]]
    assert _count(commands, "commitTransaction") == 1
    assert verdicts[2] == Duplicate(request)
    await _not_stored(store, steps[2])
    for step, verdict in zip(steps, verdicts, strict=True):
        if step is not steps[2]:
            await _stored(store, step, verdict)
    assert await client[database_name].requests.count_documents({}) == MANY


async def test_i4_a_foreign_fence_leaves_and_the_rest_is_stored(store: MongoStore) -> None:
    places = await _places(store)
    steps = [await _step(store, place) for place in places]
    _, lost = await run_turn(store, places[5], owner="one")
    await run_turn(store, places[5], owner="two")
    head = await head_of(store, places[5])
    steps[5] = a_step(head, an_event(), fence=lost.fence, new_turns=(a_turn(places[5]),))
    verdicts = await _together(store, *steps)
    assert verdicts[5] == Fenced()
    await _not_stored(store, steps[5])
    for step, verdict in zip(steps, verdicts, strict=True):
        if step is not steps[5]:
            await _stored(store, step, verdict)


async def test_a_document_that_is_not_there_stops_its_own_step_alone(store: MongoStore) -> None:
    """Its head has not moved: nothing says whose miss it was."""
    steps = await _steps(store)
    missing = replace(steps[1], calls=(a_call(a_place(session_id=steps[1].session_id)),))
    verdicts = await _together(store, steps[0], missing, *steps[2:])
    assert verdicts[1] == Stale()
    await _not_stored(store, missing)
    for step, verdict in zip((steps[0], *steps[2:]), (verdicts[0], *verdicts[2:]), strict=True):
        await _stored(store, step, verdict)


async def test_a_head_that_somebody_keeps_locked_fails_alone(
    new_store: NewStore, client: Client, database_name: str
) -> None:
    """An open transaction moves nothing yet: nothing says which head is in the way."""
    store, other = await new_store(operation=timedelta(seconds=2)), await new_store()
    moved, locked, good, fine = await _steps(other, 4)
    await committed(other.commit(replace(moved, step_id="faster", new_turns=())))
    async with client.start_session() as session:
        await session.start_transaction()
        heads = client[database_name]["heads"]
        await heads.update_one({"session_id": locked.session_id}, {"$set": {"x": 1}}, session=session)
        callers = [asyncio.create_task(store.commit(step)) for step in (moved, locked, good, fine)]
        verdicts = await asyncio.gather(*callers, return_exceptions=True)
        await session.abort_transaction()
    assert verdicts[0] == Stale()
    assert isinstance(verdicts[1], ServiceUnavailable)
    await _not_stored(other, locked)
    await _stored(other, good)
    await _stored(other, fine)


async def test_a_step_whose_very_filter_cannot_be_sent_fails_alone(store: MongoStore) -> None:
    """Nor can it be asked then who has moved."""
    good, bad, other = await _steps(store, 3)
    verdicts = await _together(store, good, replace(bad, cancel="\ud800"), other)
    await _not_stored(store, bad)
    await _stored(store, good, verdicts[0])
    await _stored(store, other, verdicts[2])


async def test_a_step_that_cannot_be_written_fails_alone(store: MongoStore) -> None:
    good, bad, other = await _steps(store, 3)
    bad = replace(bad, new_turns=(replace(bad.new_turns[0], principal="\ud800"),))
    verdicts = await asyncio.gather(*(store.commit(step) for step in (good, bad, other)), return_exceptions=True)
    assert isinstance(verdicts[1], Exception)
    assert await store.events(bad.tenant, bad.session_id, after=bad.last_seq, limit=9) == []
    await _stored(store, good)
    await _stored(store, other)


@pytest.mark.parametrize("command", ["update", "insert", "commitTransaction"])
@pytest.mark.parametrize("how", [CONFLICT, NEVER_ARRIVED], ids=["conflict", "never-arrived"])
async def test_a_batch_that_fails_for_a_while_is_stored_once(
    store: MongoStore, failing: FailPoint, how: dict[str, Any], command: str
) -> None:
    steps = await _steps(store)
    async with failing([command], times=3, **how):
        verdicts = await _together(store, *steps)
    for step, verdict in zip(steps, verdicts, strict=True):
        await _stored(store, step, verdict)


async def test_i3_an_unknown_outcome_of_a_batch_is_resolved_for_each(new_store: NewStore, failing: FailPoint) -> None:
    """The commit was carried out, but each answer says that this may not last, until the deadline."""
    other = await new_store()
    steps = await _steps(other)
    place = await begin(other)
    store = await new_store(operation=SOON)
    silent = a_step(await head_of(other, place), head=HeadChange(lease=Lease.TAKE, owner="one", lease_for=LONG))
    async with failing(["commitTransaction"], **REPLY_LOST):
        *verdicts, last = await _together(store, *steps, silent)
    assert last == Committed(last_seq=1, fence=1, events=())
    for step, verdict in zip(steps, verdicts, strict=True):
        await _stored(other, step, verdict)


async def test_i3_a_batch_that_stays_unknown_is_neither_answered_nor_given_up(
    new_store: NewStore, failing: FailPoint
) -> None:
    store, other = await new_store(operation=SOON), await new_store()
    steps = await _steps(other)
    async with failing(["commitTransaction"], **NEVER_ARRIVED):
        answers = await asyncio.gather(*(store.commit(step) for step in steps), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ServiceUnavailable] * MANY
        for step in steps:
            await _not_stored(other, step)

    async def resolved() -> bool:
        places = [(step.tenant, step.session_id) for step in steps]
        return set((await other.last_seqs(places)).values()) == {2}

    await until(resolved)
    for step in steps:
        await _stored(other, step)


async def test_a_cancelled_caller_cancels_nothing(store: MongoStore, recorder: Recorder, failing: FailPoint) -> None:
    steps = await _steps(store)
    async with failing(["commitTransaction"], times=1, blockConnection=True, blockTimeMS=HELD_MS):
        with recorder.recording():
            callers = [asyncio.create_task(store.commit(step)) for step in steps]
            await _until_sent(recorder, "commitTransaction")
            callers[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await callers[0]
            verdicts = await asyncio.gather(*callers[1:])
    await _stored(store, steps[0])
    for step, verdict in zip(steps[1:], verdicts, strict=True):
        await _stored(store, step, verdict)


async def test_nobody_waits_for_work_that_never_began(store: MongoStore) -> None:
    """A store that is closed cancels what is left, and that may not have had its first turn."""
    step, *others = await _steps(store, 3)
    waiting = [asyncio.create_task(store.commit(each)) for each in (replace(step, leased=True), *others)]
    await asyncio.sleep(0)  # each has handed its step in, and of the store's own tasks none has had its turn
    for task in list(store._tasks._running):  # noqa: SLF001 - as its close does
        task.cancel()
    async with asyncio.timeout(5.0):
        answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ServiceUnavailable] * 3


async def test_one_session_is_at_most_once_in_a_batch(store: MongoStore, recorder: Recorder) -> None:
    steps = await _steps(store, 3)
    twins = [replace(step, step_id=f"twin of {step.step_id}", new_turns=()) for step in steps]
    with recorder.recording() as commands:
        verdicts = await _together(store, *steps, *twins)
    assert len(_sessions_of(commands)) > 1
    for sessions in _sessions_of(commands):
        assert len(set(sessions)) == len(sessions)
    assert [type(verdict) for verdict in verdicts] == [Committed] * 3 + [Stale] * 3


async def test_renewals_go_with_the_steps(store: MongoStore, recorder: Recorder) -> None:
    places = await _places(store, 3)
    owned = [(place, (await run_turn(store, place, lease=SHORT))[1].fence) for place in places]
    for place in places:
        await lapse(store, place)
    step = await _step(store, await begin(store))
    with recorder.recording() as commands:
        committing = asyncio.create_task(store.commit(step))
        renewed = await asyncio.gather(
            *(
                store.renew(place.tenant, place.session_id, owner="one", fence=fence, lease=LONG)
                for place, fence in owned
            ),
            store.renew(places[0].tenant, "nowhere", owner="one", fence=1, lease=LONG),
        )
        verdict = await committing
    assert renewed == [True, True, True, False]
    assert _count(commands, "commitTransaction") == 1
    await _stored(store, step, verdict)
    assert all([(await head_of(store, place)).owned for place in places])


async def test_a_sharded_cluster_gets_no_batches(store: MongoStore, recorder: Recorder) -> None:
    steps = await _steps(store, 3)
    store._committer.grouping = False  # noqa: SLF001 - there is no such cluster here
    with recorder.recording() as commands:
        await _together(store, *steps)
    assert list(map(len, _sessions_of(commands))) == [1, 1, 1]


@pytest.mark.parametrize(("answer", "sharded"), [({"msg": "isdbgrid"}, True), ({"setName": "rs0"}, False)])
async def test_a_router_says_that_it_is_one(answer: dict[str, Any], sharded: bool) -> None:
    class Database:
        async def command(self, _: str) -> dict[str, Any]:
            return answer

    connection: Any = SimpleNamespace(client=SimpleNamespace(admin=Database()))
    assert await indexes.is_sharded(connection) is sharded


async def test_a_batch_has_a_limit(store: MongoStore, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "MOST", 3)
    steps = await _steps(store)
    with recorder.recording() as commands:
        await _together(store, *steps)
    assert list(map(len, _sessions_of(commands))) == [3, 3, 2]
    monkeypatch.setattr(committer, "MOST_BYTES", 300)
    large = [await _step(store, Place(tenant=step.tenant, session_id=step.session_id)) for step in steps]
    with recorder.recording() as commands:
        await _together(store, *large)
    assert max(map(len, _sessions_of(commands))) < 3


DOOMED = """
import asyncio, os, sys
from tests.contracts.stores import TextCodec, a_step, begin, head_of
from tests.builders import Place, an_event
from turnkeeper.faults import arm
from turnkeeper.store.mongo.store import MongoStore

async def main():
    store = MongoStore(sys.argv[1], database=sys.argv[2], codec=TextCodec(), replica="doomed")
    await store.open()
    places = [Place(session_id=each) for each in sys.argv[3:]]
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
    sessions = [each.session_id for each in await _places(store)]
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DOOMED, mongo_uri, database_name, *sessions), env={VARIABLE: f"{place}=kill"}
    )
    assert await program.wait() == -signal.SIGKILL
    stored = place == "step.after_commit"
    places = [("default", session) for session in sessions]
    assert set((await store.last_seqs(places)).values()) == {2 if stored else 1}
    await new_store(replica="doomed")
    steps = [await _step(store, Place(session_id=session)) for session in sessions]
    for step, verdict in zip(steps, await _together(store, *steps), strict=True):
        await _stored(store, step, verdict)
