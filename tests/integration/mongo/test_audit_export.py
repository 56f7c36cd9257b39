"""An export of the trail while replicas seal."""

import asyncio

from tests.builders import NOON
from tests.contracts.databases import database_name, shared_database
from tests.contracts.stores import TextCodec
from tests.integration.mongo.test_audit_verify import (
    TENANT,
    Trail,
    export,
    trail,
)
from turnkeeper.audit.export import lines_of_trail
from turnkeeper.audit.signing import Signer
from turnkeeper.engine.replica.sealer import Sealer
from turnkeeper.store.mongo.store import MongoStore

__all__ = ["database_name", "shared_database", "trail"]


def test_what_is_sealed_during_an_export_is_in_it(trail: Trail) -> None:
    """The export ends with the seal that was the last one as it began."""

    async def write() -> bytes:
        store = MongoStore(trail.uri, database=trail.database.name, codec=TextCodec())
        sign = Signer.from_file(trail.folder / "audit.pem").sign
        lines = lines_of_trail(store, TENANT)
        content = await anext(lines)
        await Sealer(store, sign=sign, now=lambda: NOON, jitter=lambda: 0.5).seal()
        content += b"".join([line async for line in lines])
        await store.close()
        return content

    before = export(trail).read_bytes()
    after = asyncio.run(write())
    assert sorted(after.splitlines()) == sorted(before.splitlines())
    assert trail.seal(4).number == 4
    file = trail.folder / "during.jsonl"
    file.write_bytes(after)
    assert "2 without a seal" in trail.verify(str(file), "--public-key", trail.public_key)[1]
