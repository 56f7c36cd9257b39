"""How many delegations a person gives, and how many one receives: a vote looks at all of them."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from tests.builders import new_id
from tests.contracts.test_store_audit import a_record
from tests.identities import row
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from turnkeeper.domain.audit import NO_ORIGIN
from turnkeeper.domain.delegation import Delegation
from turnkeeper.engine.delegations import MOST_RECEIVED, Delegations
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.errors import QuotaExceeded
from turnkeeper.identity.principals import Principals
from turnkeeper.rpc.codec import WireCodec

TENANT = "acme"
LATER = datetime.now(UTC) + timedelta(days=1)


class Scene:
    """The verbs on a store in memory, in a tenant of three approvers."""

    def __init__(self, folder: Path) -> None:
        file = folder / "principals.toml"
        file.write_text("".join(row(name, tenant=TENANT, roles=["approver"]) for name in ("bob", "eve", "sue")))
        self.principals = Principals(file)
        database = MemoryDatabase(now=lambda: datetime.now(UTC))
        self.store = MemoryStore(database, codec=WireCodec(), enter=self._enter, random=Random(1), replica="one")
        sources = Sources(now=lambda: datetime.now(UTC), new_id=lambda: new_id("id"), jitter=lambda: 0.0)
        self.verbs = Delegations(self.store, self.principals, sources=sources)

    async def _enter(self, _: str) -> None:
        await asyncio.sleep(0)

    async def delegate(self, person: str, delegate: str) -> Delegation:
        caller = self.principals.person(TENANT, person)
        assert caller is not None
        return await self.verbs.delegate(caller, delegate, until=LATER, origin=NO_ORIGIN)

    async def receive(self, delegate: str, count: int) -> None:
        """Stores so many delegations to one person."""
        first = await self.delegate("eve", delegate)
        for number in range(1, count):
            await self.store.put_delegation(replace(first, person=f"person-{number:04}"), a_record(TENANT))


async def test_no_delegation_is_stored_that_no_vote_would_look_at(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await scene.receive("sue", MOST_RECEIVED)
    with pytest.raises(QuotaExceeded) as refusal:
        await scene.delegate("bob", "sue")
    assert "sue has 1,000 delegations already; delegate to another approver" in refusal.value.message
    assert len(await scene.store.delegations(TENANT, delegate="sue", limit=2 * MOST_RECEIVED)) == MOST_RECEIVED
    assert (await scene.delegate("eve", "sue")).person == "eve", "one in the place of an earlier one adds none"
    assert await scene.verbs.revoke(TENANT, "eve", "sue", origin=NO_ORIGIN)
    assert (await scene.delegate("bob", "sue")).person == "bob"
    sue = scene.principals.person(TENANT, "sue")
    assert sue is not None
    with_credential = replace(sue, credential_id="sub:sue")
    assert [mandate.person for mandate in (await scene.verbs.decider_of(with_credential)).mandates] == ["sue", "bob"]
