"""Samples of refused calls: one a second for each principal and reason, with the number since the last one."""

import asyncio
import json
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from tests.builders import NOON, new_id
from tests.contracts.stores import TextCodec
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from turnkeeper.audit.refusals import MOST_SAMPLES, MOST_WATCHED, RefusalSamples, RefusedCall
from turnkeeper.domain.audit import Origin
from turnkeeper.errors import ServiceUnavailable


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> Any:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Trail:
    """The samples, and what they have stored. A store that fails does so before it stores anything."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.failing = False
        self._store = MemoryStore(
            MemoryDatabase(now=self.clock), codec=TextCodec(), enter=self._enter, random=Random(1)
        )
        self.samples = RefusalSamples(self._store, now=self.clock, new_id=new_id)

    async def _enter(self, _: str) -> None:
        await asyncio.sleep(0)
        if self.failing:
            raise ServiceUnavailable

    def refuse(self, principal: str = "anna", reason: str = "PERMISSION_DENIED", *, times: int = 1) -> None:
        call = RefusedCall(tenant="acme", reason=reason, method="Service/Method", origin=Origin(principal=principal))
        for _ in range(times):
            self.samples.note(call)

    async def stored(self) -> list[tuple[str, str, str]]:
        """Stores the samples. Returns principal, reason and number of calls of each."""
        await self.samples.store()
        lines = [json.loads(record.text) async for record in self._store.records("acme", seal=0)]
        return [(line["principal"], line["outcome"], line["details"]["calls"]) for line in lines]


@pytest.fixture
def trail() -> Trail:
    return Trail()


async def test_a_flood_is_one_sample_a_second_with_its_number(trail: Trail) -> None:
    trail.refuse(times=1000)
    assert await trail.stored() == [("anna", "PERMISSION_DENIED", "1")]
    trail.clock.move(0.99)
    trail.refuse()
    assert len(await trail.stored()) == 1
    trail.clock.move(0.01)
    trail.refuse()
    assert (await trail.stored())[1:] == [("anna", "PERMISSION_DENIED", "1001")]


async def test_principals_and_reasons_have_samples_of_their_own(trail: Trail) -> None:
    trail.refuse("anna")
    trail.refuse("bert")
    trail.refuse("anna", "UNAUTHENTICATED/EXPIRED")
    assert len(await trail.stored()) == 3


async def test_many_principals_fill_neither_memory_nor_database(trail: Trail) -> None:
    for number in range(MOST_WATCHED + 10):
        trail.refuse(str(number))
    assert len(await trail.stored()) == MOST_SAMPLES


async def test_samples_wait_for_a_database_that_is_away(trail: Trail) -> None:
    trail.refuse()
    trail.failing = True
    with pytest.raises(ServiceUnavailable):
        await trail.stored()
    trail.failing = False
    assert len(await trail.stored()) == 1
    assert len(await trail.stored()) == 1
