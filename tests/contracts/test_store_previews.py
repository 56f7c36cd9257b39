"""Previews for other replicas: kept by message, attempt and offset; never twice, never history."""

import asyncio
from dataclasses import replace

from tests.builders import a_preview_chunk, a_session_key
from tests.contracts.conftest import NewStore
from tests.contracts.stores import begin, head_of
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.contract import Store


async def test_chunks_are_kept_by_message_attempt_and_offset(store: Store) -> None:
    key = a_session_key()
    first, second = a_preview_chunk(key, "Я 海"), a_preview_chunk(key, "🙂", offset=6)
    others = [replace(first, message_id="n"), replace(first, attempt=2), replace(first, session_id="another")]
    await store.put_previews([second, *others])
    await store.put_previews([first, replace(second, text="again, and longer")])

    async def of(*, after: int = 0) -> list[object]:
        return list(await store.previews(key, message_id="m", attempt=1, after=after))

    assert await of() == [first, second]
    assert await of(after=6) == [second]
    assert await of(after=7) == []
    await store.put_previews([])


async def test_i13_another_tenants_chunks_are_absent(store: Store) -> None:
    blue, red = a_session_key(tenant="blue", session_id="same"), a_session_key(tenant="red", session_id="same")
    await store.put_previews([a_preview_chunk(blue, "blue"), a_preview_chunk(red, "red")])
    for key in (blue, red):
        chunks = await store.previews(SessionKey(key.tenant, "same"), message_id="m", attempt=1, after=0)
        assert chunks == [a_preview_chunk(key, key.tenant)]


async def test_other_replicas_receive_chunks_and_their_owner_does_not(new_store: NewStore) -> None:
    here, there = await new_store("here"), await new_store("there")
    key = a_session_key()
    async with here.notifications() as notifications:
        await here.put_previews([a_preview_chunk(key, "mine", message_id="own")])
        await there.put_previews([a_preview_chunk(key, "theirs")])
        async with asyncio.timeout(10):
            assert await anext(notifications) == a_preview_chunk(key, "theirs")


async def test_i10_chunks_are_no_events(store: Store) -> None:
    key = await begin(store)
    await store.put_previews([a_preview_chunk(key)])
    assert (await head_of(store, key)).last_seq == 1
    assert len(await store.events(key, after=0, limit=9)) == 1
