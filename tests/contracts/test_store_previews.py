"""Previews for other replicas: kept by message, attempt and offset; never twice, never history."""

import asyncio
from dataclasses import replace

from tests.builders import a_place, a_preview_chunk
from tests.contracts.conftest import NewStore
from tests.contracts.stores import begin, head_of
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.contract import Store


async def test_chunks_are_kept_by_message_attempt_and_offset(store: Store) -> None:
    place = a_place()
    first, second = a_preview_chunk(place, "Я 海"), a_preview_chunk(place, "🙂", offset=6)
    others = [replace(first, message_id="n"), replace(first, attempt=2), replace(first, session_id="another")]
    await store.put_previews([second, *others])
    await store.put_previews([first, replace(second, text="again, and longer")])

    async def of(*, after: int = 0) -> list[object]:
        return list(await store.previews(place, message_id="m", attempt=1, after=after))

    assert await of() == [first, second]
    assert await of(after=6) == [second]
    assert await of(after=7) == []
    await store.put_previews([])


async def test_i13_another_tenants_chunks_are_absent(store: Store) -> None:
    blue, red = a_place(tenant="blue", session_id="same"), a_place(tenant="red", session_id="same")
    await store.put_previews([a_preview_chunk(blue, "blue"), a_preview_chunk(red, "red")])
    for place in (blue, red):
        found = await store.previews(SessionKey(place.tenant, "same"), message_id="m", attempt=1, after=0)
        assert found == [a_preview_chunk(place, place.tenant)]


async def test_other_replicas_receive_chunks_and_their_owner_does_not(new_store: NewStore) -> None:
    here, there = await new_store("here"), await new_store("there")
    place = a_place()
    async with here.notifications() as notifications:
        await here.put_previews([a_preview_chunk(place, "mine", message_id="own")])
        await there.put_previews([a_preview_chunk(place, "theirs")])
        async with asyncio.timeout(10):
            assert await anext(notifications) == a_preview_chunk(place, "theirs")


async def test_i10_chunks_are_no_events(store: Store) -> None:
    place = await begin(store)
    await store.put_previews([a_preview_chunk(place)])
    assert (await head_of(store, place)).last_seq == 1
    assert len(await store.events(place, after=0, limit=9)) == 1
