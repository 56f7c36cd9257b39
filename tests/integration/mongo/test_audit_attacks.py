"""Attacks on the audit trail by those who may write to the database or to an export: each is named, none breaks a tool.

The databases and exports are those of `test_audit_verify`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import NOON
from tests.contracts.databases import database_name, shared_database
from tests.contracts.stores import TextCodec
from tests.contracts.test_store_audit import a_record
from tests.integration.mongo.test_audit_verify import TENANT, Trail, export, trail
from turnkeeper.audit.verification import Verification, Verified, verify
from turnkeeper.domain.audit import ChainEnd, StoredRecord, seal_of
from turnkeeper.engine.replica.sealer import Sealer
from turnkeeper.store.mongo.store import MongoStore

__all__ = ["database_name", "shared_database", "trail"]

DEEP = "[" * 200_000


def insert(trail: Trail, key: Any, text: str, **fields: Any) -> None:
    document = {"_id": key, "tenant": TENANT, "text": text, "seal": 0, **fields}
    trail.database["audit_records"].insert_one(document)


def forged(record_id: str) -> str:
    return a_record(id=record_id, outcome="FORGED").text


# --- records ---------------------------------------------------------------------------------------------------------


def a_twin_before_a_sealed_record(trail: Trail) -> str:
    """It hides behind the true one where records are looked up by their ids."""
    twin = trail.record(2, 1)
    key = {"id": twin, "tenant": TENANT}
    insert(trail, key, forged(twin), seal=2, at=NOON.replace(year=1999))
    return f"record {key} of tenant acme is foreign: it names a seal that does not list it"


def a_twin_without_a_seal(trail: Trail) -> str:
    twin = trail.record(2, 1)
    key = {"tenant": TENANT, "id": twin, "more": 1}
    insert(trail, key, forged(twin))
    return f"record {key} of tenant acme is foreign: its text is of another tenant or record"


def a_record_of_two_seals(trail: Trail) -> str:
    """No query for one seal finds it, and each half of a range fits one of its numbers."""
    insert(trail, {"tenant": TENANT, "id": "between"}, forged("between"), seal=[-5, 10**9])
    return "record between of tenant acme is foreign: it names a seal that does not list it"


def a_seal_number_of_another_type(trail: Trail) -> str:
    trail.change(trail.record(1, 2), seal=1.0)
    return f"record {trail.record(1, 2)} of tenant acme is foreign: it names a seal that does not list it"


def a_text_without_end(trail: Trail) -> str:
    insert(trail, {"tenant": TENANT, "id": "deep"}, DEEP)
    return "record deep of tenant acme is foreign: its text is of another tenant or record"


def records_of_two_tenants_swapped(trail: Trail) -> str:
    mine = trail.record(1, 0)
    other = a_record("other", id="theirs")
    records = trail.database["audit_records"]
    insert(trail, {"tenant": "other", "id": "theirs"}, other.text, tenant="other")
    text = records.find_one({"_id.id": mine})["text"]  # type: ignore[index]
    trail.change(mine, text=other.text)
    records.update_one({"_id.id": "theirs"}, {"$set": {"text": text}})
    return f"record {mine} of tenant acme, seal 1, is altered"


def texts_of_two_records_swapped(trail: Trail) -> str:
    first, second = trail.record(2, 0), trail.record(2, 1)
    texts = {
        document["_id"]["id"]: document["text"] for document in trail.database["audit_records"].find({"tenant": TENANT})
    }
    trail.change(first, text=texts[second])
    trail.change(second, text=texts[first])
    return f"record {first} of tenant acme, seal 2, is altered"


def a_line_that_tells_that_all_is_well(trail: Trail) -> str:
    """A record's id goes to the terminal."""
    insert(trail, {"tenant": TENANT, "id": "x\nin order: tenant acme"}, "{}")
    return r"record x\nin order: tenant acme of tenant acme is foreign: its text is of another tenant or record"


# --- seals -----------------------------------------------------------------------------------------------------------


def places_in_a_seal_swapped(trail: Trail) -> str:
    seal = trail.seal(2)
    trail.put_seal(replace(seal, leaves=(seal.leaves[1], seal.leaves[0], seal.leaves[2])))
    return "seal 2 of tenant acme is altered: its root is not that of its records"


def two_seals_swapped(trail: Trail) -> str:
    two, three = trail.seal(2), trail.seal(3)
    trail.put_seal(replace(three, number=2))
    trail.put_seal(replace(two, number=3))
    return "seal 2 of tenant acme is foreign: it is of another tenant or place"


def a_seal_twice(trail: Trail) -> str:
    document = trail.database["audit_seals"].find_one({"tenant": TENANT, "number": 2})
    assert document is not None
    trail.database["audit_seals"].insert_one({**document, "_id": "again"})
    return "seal 2 of tenant acme is out of its place"


def a_seal_whose_text_has_no_end(trail: Trail) -> str:
    trail.database["audit_seals"].update_one({"tenant": TENANT, "number": 1}, {"$set": {"text": DEEP}})
    return "seal 1 of tenant acme is foreign: it is of another tenant or place"


def an_end_that_is_no_number(trail: Trail) -> str:
    trail.database["audit_chains"].update_one({"tenant": TENANT}, {"$set": {"number": "three", "hash": 3}})
    trail.delete(trail.record(3, 2))
    return f"record {trail.record(3, 2)} of tenant acme, seal 3, is missing"


DAMAGES = [
    a_twin_before_a_sealed_record,
    a_twin_without_a_seal,
    a_record_of_two_seals,
    a_seal_number_of_another_type,
    a_text_without_end,
    records_of_two_tenants_swapped,
    texts_of_two_records_swapped,
    a_line_that_tells_that_all_is_well,
    places_in_a_seal_swapped,
    two_seals_swapped,
    a_seal_twice,
    a_seal_whose_text_has_no_end,
    an_end_that_is_no_number,
]


def an_end_before_the_last_seal(trail: Trail) -> None:
    trail.database["audit_chains"].update_one({"tenant": TENANT}, {"$set": {"number": 1, "hash": trail.seal(1).hash}})


def no_number_at_the_end(trail: Trail) -> None:
    trail.database["audit_chains"].update_one({"tenant": TENANT}, {"$set": {"number": "three", "hash": 3}})


def a_record_with_another_key(trail: Trail) -> None:
    insert(trail, {"id": "odd", "tenant": TENANT}, forged("odd"))


def no_end(trail: Trail) -> None:
    trail.database["audit_chains"].delete_many({})


@pytest.mark.parametrize(
    "damage", [an_end_before_the_last_seal, no_number_at_the_end, a_record_with_another_key, no_end]
)
def test_what_was_done_to_the_database_stops_no_sealer_and_keeps_none_at_work(
    trail: Trail, damage: Callable[[Trail], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(trail)

    async def seal() -> list[int]:
        store = MongoStore(trail.uri, database=trail.database.name, codec=TextCodec())
        sealer = Sealer(store, sign=None, now=lambda: NOON, jitter=lambda: 0.5)
        for _ in range(3):
            await sealer.seal()
        numbers = [seal.number async for seal in store.seals(TENANT)]
        await store.close()
        return numbers

    assert asyncio.run(seal()) == [1, 2, 3, 4]
    assert trail.verify("--tenant", TENANT)[0] == int(damage is a_record_with_another_key)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_trail_that_cannot_be_sealed_stops_no_other_tenants(trail: Trail, caplog: pytest.LogCaptureFixture) -> None:
    trail.database["audit_chains"].update_one({"tenant": TENANT}, {"$set": {"number": 2**63 - 1}})
    beside = a_record("beside", id="sealed")
    document = {"_id": {"tenant": "beside", "id": beside.id}, "tenant": "beside", "text": beside.text, "seal": 0}
    trail.database["audit_records"].insert_one(document)

    async def seal() -> None:
        store = MongoStore(trail.uri, database=trail.database.name, codec=TextCodec())
        await Sealer(store, sign=None, now=lambda: NOON, jitter=lambda: 0.5).seal()
        await store.close()

    asyncio.run(seal())
    assert trail.verify("--tenant", "beside")[0] == 0
    assert trail.verify("--tenant", TENANT) == (1, "seal 4 of tenant acme is missing")
    assert "audit records of tenant acme not sealed" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_an_attack_on_the_database_is_named(trail: Trail, damage: Callable[[Trail], str]) -> None:
    expected = damage(trail)
    assert trail.verify("--tenant", TENANT) == (1, expected)


def test_two_hashes_of_one_seal_in_the_log_are_two_chains(trail: Trail) -> None:
    named = trail.seal(2).name
    other = f"{named[:-1]}{'0' if named[-1] != '0' else '1'}"
    expected = (1, "seal 2 of tenant acme has two hashes in the log: its chain was forked")
    assert trail.verify("--expect", named, "--expect", other) == expected
    assert trail.verify("--expect", other, "--expect", named) == expected
    assert trail.verify("--expect", named, "--expect", named)[0] == 0


def test_what_is_sealed_while_it_is_checked_is_no_attack(trail: Trail) -> None:
    """A tenant without a seal gets its first one between two reads."""

    async def check() -> Verified:
        store = Sealing(trail.uri, database=trail.database.name, codec=TextCodec())
        await store.record(a_record("young"))
        store.sealer = Sealer(store, sign=None, now=lambda: NOON, jitter=lambda: 0.5)
        result = await verify(store, Verification("young"))
        await store.close()
        return result

    assert asyncio.run(check()).seals == 0
    assert trail.verify("--tenant", "young")[1].startswith("in order: tenant young: 1 records in 1 seals")


class Sealing(MongoStore):
    """Seals all records before the records beyond the last seal are read."""

    sealer: Sealer

    async def unlisted_records(self, tenant: str, *, beyond: int) -> AsyncIterator[StoredRecord]:
        await self.sealer.seal()
        async for record in super().unlisted_records(tenant, beyond=beyond):
            yield record


# --- exports ---------------------------------------------------------------------------------------------------------

Lines = list[dict[str, Any]]
Damage = Callable[[Lines], object]


def of_session(lines: Lines, place: int) -> dict[str, Any]:
    return [line["audit"] for line in lines if "audit" in line][place]  # type: ignore[no-any-return]


def a_record_under_another_name(lines: Lines) -> None:
    of_session(lines, 0)["id"] = "s-1/9/x"


def a_record_of_another_session(lines: Lines) -> None:
    lines[-1]["session_end"]["session_id"] = "s-2"


def a_seal_under_another_number(lines: Lines) -> None:
    """No hash in the log is compared with it then."""
    of_session(lines, 0)["proof"]["number"] = 99


def a_seal_under_another_tenants_name(lines: Lines) -> None:
    of_session(lines, 0)["proof"]["tenant"] = "other"


def a_seal_that_was_made_for_the_file(lines: Lines) -> None:
    record = of_session(lines, 0)
    record["text"] = record["text"].replace("olga", "mara")
    seal = seal_of(TENANT, [StoredRecord(record["id"], record["text"])], after=ChainEnd(), at=NOON)
    record["proof"] |= {"text": seal.text, "hash": seal.hash, "index": 0, "path": []}


def a_proof_without_end(lines: Lines) -> None:
    proof = of_session(lines, 0)["proof"]
    content = json.loads(proof["text"])
    proof["text"] = json.dumps({**content, "count": "1" + "0" * 4000})
    proof["path"] = ["00" * 32] * 5000


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (a_record_under_another_name, "is foreign: its text is of another session or record"),
        (a_record_of_another_session, "is foreign: its text is of another session or record"),
        (a_seal_under_another_number, "seal 99 of tenant acme is foreign: it is of another tenant or place"),
        (a_seal_under_another_tenants_name, "seal 1 of tenant acme is foreign: it is of another tenant or place"),
        (a_seal_that_was_made_for_the_file, "seal 1 of tenant acme is altered: "),
        (a_proof_without_end, "its proof cannot be read"),
    ],
)
def test_an_attack_on_a_sessions_export_is_named(trail: Trail, damage: Damage, sentence: str) -> None:
    file = export(trail, session=True)
    lines: Lines = [json.loads(line) for line in file.read_text().splitlines()]
    damage(lines)
    file.write_text("\n".join(map(json.dumps, lines)))
    for proof in (("--public-key", trail.public_key), ("--expect", trail.seal(1).name)):
        status, line = trail.verify(str(file), *proof)
        assert (status, sentence in line) == (1, True), line


def test_an_export_of_a_session_that_lacks_lines_is_none(trail: Trail) -> None:
    file = export(trail, session=True)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))
    assert trail.verify(str(file)) == (
        2,
        "turnkeeper audit verify: the export has no end: it was cut off; export it again",
    )
    file.write_bytes(b"".join(lines[1:]))
    status, line = trail.verify(str(file))
    assert (status, "the export lacks lines, or has more" in line) == (2, True)


def test_what_only_the_file_proves_is_told(trail: Trail) -> None:
    file = str(export(trail, session=True))
    proved = "in order: 3 records proved by their seals; 1 without a seal"
    assert trail.verify(file) == (0, f"{proved}; known from this file alone: seals 1, 2, 3")
    assert trail.verify(file, "--expect", trail.seal(2).name) == (
        0,
        f"{proved}; known from this file alone: seals 1, 3",
    )
    assert trail.verify(file, "--public-key", trail.public_key) == (0, proved)


def test_a_record_twice_in_an_export_is_foreign(trail: Trail) -> None:
    file = export(trail)
    lines = file.read_text().splitlines()
    twin = json.loads(lines[1])
    twin["record"]["text"] = forged(twin["record"]["id"])
    file.write_text("\n".join([lines[0], json.dumps(twin), *lines[1:]]))
    expected = f"record {twin['record']['id']} of tenant acme is foreign: it names a seal that does not list it"
    assert trail.verify(str(file)) == (1, expected)


def test_an_export_behind_a_seal_that_is_gone_names_it(trail: Trail) -> None:
    trail.database["audit_seals"].delete_one({"tenant": TENANT, "number": 2})
    expected = "seal 2 of tenant acme is altered: seal 3 has another hash of it"
    assert trail.verify(str(export(trail, after=2))) == (1, expected)
