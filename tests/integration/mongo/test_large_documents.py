"""Many large documents, and turns that have had any number of calls: whatever may be stored can be stored and read."""

from dataclasses import replace

from tests.builders import a_call, a_request, a_session, a_session_key, a_turn
from tests.contracts.stores import a_changeset, begin, committed, head_of, run_turn, snapshot_of
from turnkeeper.domain.message import Part
from turnkeeper.domain.tool import Call, CallState, ToolOutcome
from turnkeeper.store.changeset import Fork
from turnkeeper.store.mongo.store import MongoStore

LONG = "x" * 200_000


async def test_a_fork_of_many_long_answers_is_stored(store: MongoStore) -> None:
    """Their turns are more than one command may hold."""
    source, key = await begin(store), a_session_key()
    session = a_session(key)
    fork = await store.reserve_fork(
        Fork(session=session, source_session_id=source.session_id, source_sequence=1, log_needs=0)
    )
    assert fork is not None
    turns = [a_turn(key, answer=(Part(text=LONG),), first_sequence=number) for number in range(1, 101)]
    record = a_request(source, turn_id="", sequence=1, made_session_id=key.session_id)
    await store.finish_fork(fork, session, turns=turns, calls=(), request=record)
    (last,) = await store.turns(key, states=(), limit=1, before=None)
    assert last == turns[-1]


async def test_a_turn_that_has_had_many_large_calls_can_be_read(store: MongoStore) -> None:
    """All its calls together are more than one document may hold."""
    key = await begin(store)
    turn, _ = await run_turn(store, key)
    returned: list[Call] = []
    for _ in range(6):
        returned = [
            a_call(key, turn_id=turn.id, arguments_json=f'"{LONG}"', state=CallState.RETURNED, outcome=ToolOutcome.OK)
            for _ in range(15)
        ]
        await committed(store.commit(a_changeset(await head_of(store, key), new_calls=tuple(returned), fence=1)))
    unsettled = replace(returned[0], id="unsettled", unsettled=True)
    waiting = a_call(key, turn_id=turn.id, state=CallState.AWAITING)
    await committed(store.commit(a_changeset(await head_of(store, key), new_calls=(unsettled, waiting), fence=1)))
    snapshot = await snapshot_of(store, key)
    assert {call.id for call in snapshot.calls} == {"unsettled", waiting.id}
