"""New sessions, their agents, and what every replica shares."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from tests.builders import (
    AGENT,
    NOON,
    a_first_event,
    a_session,
    a_session_key,
    an_event,
)
from tests.contracts.conftest import NewStore
from tests.contracts.stores import a_changeset, begin, committed, head_of, snapshot_of
from turnkeeper.domain.session import SessionState
from turnkeeper.store.changeset import Cancel, HeadChange
from turnkeeper.store.contract import Store


async def test_a_new_session_has_a_head_a_first_event_and_its_agent(store: Store) -> None:
    key = a_session_key()
    session = a_session(key)
    assert await store.create_session(session, AGENT, event=a_first_event()) is None
    stored = await store.session(key)
    assert stored is not None
    assert stored[0] == session
    head = stored[1]
    assert (head.last_seq, head.fence, head.owner, head.owned, head.active_turn) == (1, 0, "", False, "")
    assert (head.queue, head.cancel, head.lapses) == ((), Cancel(), 0)
    (event,) = await store.events(key, after=0, limit=10)
    assert (event.sequence, event.kind) == (1, "session_created")
    assert event.payload.endswith(b"#1")
    assert await store.agent(key.tenant, AGENT.name, AGENT.version) == AGENT


async def test_a_session_that_exists_is_answered_as_it_is_now(store: Store) -> None:
    key = await begin(store)
    ended = a_session(key, state=SessionState.ENDED, end_time=NOON)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), session=ended)))
    again = await store.create_session(a_session(key, fingerprint="other"), AGENT, event=a_first_event())
    assert again == ended
    later = NOON + timedelta(seconds=1)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(at=later))))
    again = await store.create_session(a_session(key), AGENT, event=a_first_event())
    assert again == replace(ended, update_time=later)
    assert (await head_of(store, key)).last_seq == 3


async def test_i8_of_five_creations_at_once_one_makes_the_session(new_store: NewStore) -> None:
    replicas = [await new_store() for _ in range(2)]
    key = a_session_key()
    sessions = [a_session(key, fingerprint=str(number)) for number in range(5)]
    answers = await asyncio.gather(
        *(
            replicas[number % 2].create_session(session, AGENT, event=a_first_event())
            for number, session in enumerate(sessions)
        )
    )
    assert answers.count(None) == 1
    winner = sessions[answers.index(None)]
    assert [answer for answer in answers if answer is not None] == [winner] * 4
    assert len(await replicas[0].events(key, after=0, limit=10)) == 1


async def test_two_versions_of_an_agent_are_both_kept(store: Store) -> None:
    newer = replace(AGENT, instructions="Be brief and kind.", temperature=0.5)
    for agent in (AGENT, newer, AGENT):
        key = a_session_key()
        await store.create_session(a_session(key, agent_version=agent.version), agent, event=a_first_event())
    assert await store.agent("default", AGENT.name, AGENT.version) == AGENT
    version = await store.agent("default", newer.name, newer.version)
    assert version == newer
    assert version is not None
    assert version.version == newer.version


async def test_the_session_has_the_time_of_its_last_change(store: Store) -> None:
    key = await begin(store)
    later = NOON + timedelta(seconds=3)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(at=later))))
    expected = a_session(key, update_time=later)
    assert (await snapshot_of(store, key)).session == expected
    stored = await store.session(key)
    assert stored is not None
    assert stored[0] == expected
    await committed(store.commit(a_changeset(await head_of(store, key), head=HeadChange(queue=("t",)))))
    assert (await snapshot_of(store, key)).session == expected


async def test_a_secret_is_the_same_for_every_replica(new_store: NewStore) -> None:
    replicas = [await new_store() for _ in range(3)]
    secrets = await asyncio.gather(*(replica.secret("cursors") for replica in replicas))
    assert len(set(secrets)) == 1
    assert len(secrets[0]) == 32
    assert await replicas[0].secret("pages") != secrets[0]


async def test_it_answers_a_ping(store: Store) -> None:
    await store.ping()
