"""`turnkeeper audit verify` on a real database that was changed by hand: it names what is wrong first."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pymongo import MongoClient
from pymongo.database import Database

from tests.builders import NOON
from tests.contracts.databases import database_name, shared_database
from tests.contracts.stores import TextCodec
from tests.contracts.test_store_audit import a_record
from turnkeeper.audit.export import lines_of_session, lines_of_trail
from turnkeeper.audit.signing import Signer
from turnkeeper.command_line import main
from turnkeeper.domain.audit import ChainEnd, Seal, StoredRecord, seal_of
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.replica.sealer import Sealer
from turnkeeper.key_files import UnfitKey
from turnkeeper.store.mongo.audit_documents import seal_document, seal_of_document
from turnkeeper.store.mongo.store import MongoStore

__all__ = ["database_name", "shared_database"]

TENANT = "acme"
SESSION = SessionKey(TENANT, "s-1")


@dataclass
class Trail:
    """A trail of three seals with three records each, signed, and two records without a seal."""

    uri: str
    database: Database[dict[str, Any]]
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def seal(self, number: int) -> Seal:
        document = self.database["audit_seals"].find_one({"tenant": TENANT, "number": number})
        assert document is not None
        return seal_of_document(document)

    def put_seal(self, seal: Seal) -> None:
        self.database["audit_seals"].replace_one({"tenant": TENANT, "number": seal.number}, seal_document(seal))

    def record(self, seal: int, place: int) -> str:
        """Returns the id of a record by its place, from 0."""
        return self.seal(seal).leaves[place].id

    def change(self, record_id: str, **fields: Any) -> None:
        self.database["audit_records"].update_one({"_id.id": record_id, "tenant": TENANT}, {"$set": fields})

    def delete(self, record_id: str) -> None:
        assert self.database["audit_records"].delete_one({"_id.id": record_id, "tenant": TENANT}).deleted_count

    @property
    def public_key(self) -> str:
        return str(self.folder / "audit.pub")

    def verify(self, *arguments: str) -> tuple[int, str]:
        """Returns the exit status and the output, which is one line."""
        status = main(["audit", "verify", "--mongodb-uri", self.uri, "--database", self.database.name, *arguments])
        out, errors = self.capsys.readouterr()
        assert (out + errors).count("\n") == 1, out + errors
        return status, (out + errors).strip()


def write_key(folder: Path, name: str = "audit") -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    (folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return key


async def fill(store: MongoStore, signer: Signer) -> None:
    await store.open()
    sealer = Sealer(store, sign=signer.sign, now=lambda: NOON, jitter=lambda: 0.5)
    for number in range(3):
        times = [NOON + timedelta(seconds=3 * number + place) for place in range(3)]
        await store.record(*(a_record(at=at) for at in times[:2]))
        of_session = a_record(at=times[2], session_id=SESSION.session_id, sequence=number + 2)
        await store.record(of_session.of_changeset("c"))
        await sealer.seal()
    await store.record(a_record(), a_record(session_id=SESSION.session_id, sequence=9, id="s-1/9/c"))


@pytest.fixture
def trail(mongo_uri: str, database_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Trail]:
    write_key(tmp_path)
    write_key(tmp_path, "other")

    async def build() -> None:
        store = MongoStore(mongo_uri, database=database_name, codec=TextCodec())
        await fill(store, Signer.from_file(tmp_path / "audit.pem"))
        await store.close()

    asyncio.run(build())
    with MongoClient[dict[str, Any]](mongo_uri) as client:
        yield Trail(mongo_uri, client[database_name], tmp_path, capsys)


def test_a_trail_in_order(trail: Trail) -> None:
    last = trail.seal(3).name
    status, line = trail.verify("--public-key", trail.public_key, "--expect", last)
    assert line == f"in order: tenant acme: 9 records in 3 seals; 2 without a seal; last seal {last}"
    assert status == 0
    assert trail.verify()[0] == 0


def a_foreign_record(trail: Trail) -> str:
    record = a_record(id="intruder")
    document = {"_id": {"tenant": TENANT, "id": record.id}, "tenant": TENANT, "text": record.text, "seal": 2}
    trail.database["audit_records"].insert_one(document)
    return "record intruder of tenant acme is foreign: it names a seal that does not list it"


def a_record_of_no_seal(trail: Trail) -> str:
    trail.change(trail.record(1, 0), seal=99)
    return f"record {trail.record(1, 0)} of tenant acme, seal 1, is missing"


def an_unlisted_record(trail: Trail) -> str:
    record = a_record(id="intruder")
    document = {"_id": {"tenant": TENANT, "id": record.id}, "tenant": TENANT, "text": record.text, "seal": "none"}
    trail.database["audit_records"].insert_one(document)
    return "record intruder of tenant acme is foreign: it names a seal that does not list it"


def the_first_record_deleted(trail: Trail) -> str:
    gone = trail.record(1, 0)
    trail.delete(gone)
    return f"record {gone} of tenant acme, seal 1, is missing"


def the_last_record_deleted(trail: Trail) -> str:
    gone = trail.record(3, 2)
    trail.delete(gone)
    return f"record {gone} of tenant acme, seal 3, is missing"


def a_record_altered(trail: Trail) -> str:
    altered = trail.record(2, 1)
    trail.change(altered, text=a_record(id=altered, outcome="REJECTED").text)
    return f"record {altered} of tenant acme, seal 2, is altered"


def a_record_of_another_tenant(trail: Trail) -> str:
    record = a_record("other", id="intruder")
    document = {"_id": {"tenant": TENANT, "id": record.id}, "tenant": TENANT, "text": record.text, "seal": 0}
    trail.database["audit_records"].insert_one(document)
    return "record intruder of tenant acme is foreign: its text is of another tenant or record"


def a_whole_seal_deleted(trail: Trail) -> str:
    trail.database["audit_seals"].delete_one({"tenant": TENANT, "number": 2})
    trail.database["audit_records"].delete_many({"tenant": TENANT, "seal": 2})
    return "seal 2 of tenant acme is missing"


def the_first_seal_deleted(trail: Trail) -> str:
    trail.database["audit_seals"].delete_one({"tenant": TENANT, "number": 1})
    trail.database["audit_records"].delete_many({"tenant": TENANT, "seal": 1})
    return "seal 1 of tenant acme is missing"


def the_last_seal_deleted(trail: Trail) -> str:
    trail.database["audit_seals"].delete_one({"tenant": TENANT, "number": 3})
    trail.database["audit_records"].delete_many({"tenant": TENANT, "seal": 3})
    return "seal 3 of tenant acme is missing"


def a_seal_alone_deleted(trail: Trail) -> str:
    trail.database["audit_seals"].delete_one({"tenant": TENANT, "number": 3})
    trail.database["audit_chains"].delete_many({})
    return f"record {a_name(trail, 3)} of tenant acme is foreign: it names a seal that does not list it"


def a_name(trail: Trail, seal: int) -> str:
    document = trail.database["audit_records"].find_one({"tenant": TENANT, "seal": seal}, sort=[("at", 1)])
    assert document is not None
    name: str = document["_id"]["id"]
    return name


def a_list_altered(trail: Trail) -> str:
    """The record is replaced, and its hash in the seal's list: only the root gives it away."""
    seal, altered = trail.seal(2), trail.record(2, 0)
    record = a_record(id=altered, outcome="REJECTED")
    trail.change(altered, text=record.text)
    leaf = seal.leaves[0]._replace(hash=StoredRecord(record.id, record.text).leaf.hex())
    trail.put_seal(replace(seal, leaves=(leaf, *seal.leaves[1:])))
    return "seal 2 of tenant acme is altered: its root is not that of its records"


def replaced_seal(trail: Trail, number: int) -> Seal:
    """Replaces a record, and its seal by one that fits, without the key."""
    altered = trail.record(number, 0)
    record = a_record(id=altered, outcome="REJECTED")
    trail.change(altered, text=record.text)
    documents = {
        document["_id"]["id"]: StoredRecord(document["_id"]["id"], document["text"])
        for document in trail.database["audit_records"].find({"tenant": TENANT, "seal": number})
    }
    records = [documents[leaf.id] for leaf in trail.seal(number).leaves]
    before = ChainEnd(number - 1, trail.seal(number - 1).hash) if number > 1 else ChainEnd()
    seal = replace(seal_of(TENANT, records, after=before, at=NOON), key_id=trail.seal(number).key_id)
    trail.put_seal(seal)
    if number == 3:
        trail.database["audit_chains"].update_one({"tenant": TENANT}, {"$set": {"hash": seal.hash}})
    return seal


def a_record_and_its_seal_replaced(trail: Trail) -> str:
    replaced_seal(trail, 2)
    return "seal 2 of tenant acme is altered: seal 3 has another hash of it"


def a_record_that_is_none(trail: Trail) -> str:
    trail.change(trail.record(1, 1), text=17)
    return f"record {trail.record(1, 1)} of tenant acme, seal 1, is altered"


def a_seal_that_is_none(trail: Trail) -> str:
    trail.database["audit_seals"].update_one({"tenant": TENANT, "number": 1}, {"$set": {"text": None, "leaves": 4}})
    return "seal 1 of tenant acme is foreign: it is of another tenant or place"


DAMAGES = [
    the_first_record_deleted,
    the_last_record_deleted,
    a_record_altered,
    a_record_that_is_none,
    a_record_of_another_tenant,
    a_record_of_no_seal,
    a_foreign_record,
    an_unlisted_record,
    a_whole_seal_deleted,
    the_first_seal_deleted,
    the_last_seal_deleted,
    a_seal_alone_deleted,
    a_list_altered,
    a_record_and_its_seal_replaced,
    a_seal_that_is_none,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_wrong_is_named(trail: Trail, damage: Callable[[Trail], str]) -> None:
    expected = damage(trail)
    assert trail.verify() == (1, expected)


@pytest.mark.parametrize("number", [1, 3])
def test_a_seal_that_was_replaced_is_named_by_its_signature(trail: Trail, number: int) -> None:
    replaced_seal(trail, number)
    status, line = trail.verify("--public-key", trail.public_key)
    assert status == 1
    if number == 3:
        assert trail.verify()[0] == 0  # without the key or the log it cannot be noticed
        assert line == "seal 3 of tenant acme is altered: it has no signature"


def test_a_last_seal_that_was_replaced_is_named_by_the_log(trail: Trail) -> None:
    logged = trail.seal(3).name
    replaced_seal(trail, 3)
    expected = "seal 3 of tenant acme is altered: the log has another hash of it"
    assert trail.verify("--expect", logged) == (1, expected)


def test_an_end_that_was_cut_off_is_named_by_the_log(trail: Trail) -> None:
    logged = trail.seal(3).name
    the_last_seal_deleted(trail)
    two = trail.seal(2)
    trail.database["audit_chains"].update_one({"tenant": TENANT}, {"$set": {"number": 2, "hash": two.hash}})
    assert trail.verify("--public-key", trail.public_key)[0] == 0
    expected = "seal 3 of tenant acme is missing: the log has its hash"
    assert trail.verify("--expect", logged) == (1, expected)


def test_a_tenant_that_was_wiped_out_is_named_by_the_log(trail: Trail) -> None:
    logged = trail.seal(3).name
    for name in ("audit_records", "audit_seals", "audit_chains"):
        trail.database[name].delete_many({})
    status, line = trail.verify()
    assert (status, "has no record: look for it in another one" in line) == (2, True)
    assert trail.verify("--expect", logged) == (1, "seal 3 of tenant acme is missing: the log has its hash")


def test_signatures_are_by_the_given_keys_alone(trail: Trail) -> None:
    other = str(trail.folder / "other.pub")
    expected = "seal 1 of tenant acme is altered: its signature is by a key that is not among the given ones"
    assert trail.verify("--public-key", other) == (1, expected)
    assert trail.verify("--public-key", other, "--public-key", trail.public_key)[0] == 0


def test_signatures_that_were_taken_away_are_noticed(trail: Trail) -> None:
    trail.database["audit_seals"].update_many({}, {"$set": {"signature": ""}})
    expected = "seal 1 of tenant acme is unsigned, as all others"
    assert trail.verify("--public-key", trail.public_key) == (1, expected)


def test_seals_from_before_the_key_are_counted(trail: Trail) -> None:
    trail.database["audit_seals"].update_one({"number": 1}, {"$set": {"signature": ""}})
    status, line = trail.verify("--public-key", trail.public_key)
    assert status == 0
    assert "9 records in 3 seals, 1 of them unsigned" in line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--public-key", "nothing.pub"], "nothing.pub cannot be read: No such file or directory"),
        (["--public-key", "audit.pem"], "is not a public key in PEM"),
        (["--expect", "acme/3"], "--expect must be TENANT/NUMBER/HASH, as the log has it"),
        (["nothing.jsonl"], "nothing.jsonl cannot be read: No such file or directory"),
        (["empty.jsonl"], "line 1 is not a line of an export"),
        (["cut.jsonl"], "the export has no end: it was cut off; export it again"),
        (["text.jsonl"], "line 2 is not a line of an export"),
        (["fields.jsonl"], "line 1 lacks a field, or has another kind of value in it"),
        (["kinds.jsonl"], "line 1 is not of such an export"),
        (["nowhere.jsonl", "--tenant", "acme"], "nowhere.jsonl cannot be read"),
        (["."], ". cannot be read: Is a directory"),
        (["--tenant", "acmee"], "has no record of tenant acmee: look for it in another one"),
        (["--tenant", "acme", "--expect", f"other/1/{'0' * 64}"], "these are named: acme, other"),
    ],
)
def test_bad_input_is_refused(trail: Trail, arguments: list[str], sentence: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(trail.folder)
    (trail.folder / "empty.jsonl").write_text("\n")
    (trail.folder / "cut.jsonl").write_text('{"record":{"seal":0,"id":"a","text":"{}"}}\n')
    (trail.folder / "text.jsonl").write_text('{"record":{"seal":0,"id":"a","text":"{}"}}\nhello\n')
    (trail.folder / "kinds.jsonl").write_text('{"none":{}}\n')
    (trail.folder / "fields.jsonl").write_text('{"record":{"seal":"one","id":"a","text":"{}"}}\n')
    status, line = trail.verify(*arguments)
    assert status == 2
    assert line.startswith("turnkeeper audit verify: ")
    assert sentence in line


def export(trail: Trail, *, after: int = 0, session: bool = False) -> Path:
    async def write() -> bytes:
        store = MongoStore(trail.uri, database=trail.database.name, codec=TextCodec())
        lines = lines_of_session(store, SESSION) if session else lines_of_trail(store, TENANT, after=after)
        content = b"".join([line async for line in lines])
        await store.close()
        return content

    file = trail.folder / "export.jsonl"
    file.write_bytes(asyncio.run(write()))
    return file


def test_an_export_is_as_good_as_the_database(trail: Trail) -> None:
    arguments = ("--public-key", trail.public_key, "--expect", trail.seal(3).name)
    assert trail.verify(str(export(trail)), *arguments) == trail.verify(*arguments)


def test_an_export_may_begin_behind_a_seal(trail: Trail) -> None:
    status, line = trail.verify(str(export(trail, after=2)), "--public-key", trail.public_key)
    assert (status, "3 records in 1 seals; 2 without a seal" in line) == (0, True)


def test_a_line_that_is_missing_or_altered_in_an_export_is_named(trail: Trail) -> None:
    file = export(trail)
    lines = file.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines[:-1]):
        file.write_bytes(b"".join([*lines[:number], *lines[number + 1 :]]))
        is_sealed = '"seal":0' not in line.decode()
        assert trail.verify(str(file))[0] == (1 if is_sealed else 2)
    altered = lines[0].replace(b"freeze", b"thawed")
    file.write_bytes(b"".join([altered, *lines[1:]]))
    assert trail.verify(str(file)) == (1, f"record {trail.record(1, 0)} of tenant acme, seal 1, is altered")


def test_a_sessions_export_proves_its_records(trail: Trail) -> None:
    file = export(trail, session=True)
    file.write_bytes(b'{"event":{"sequence":"1"}}\n' + file.read_bytes())
    arguments = (str(file), "--public-key", trail.public_key, "--expect", trail.seal(2).name)
    assert trail.verify(*arguments) == (0, "in order: 3 records proved by their seals; 1 without a seal")
    lines = file.read_text().splitlines()
    record = json.loads(lines[2])
    record["audit"]["text"] = record["audit"]["text"].replace("olga", "mara")
    file.write_text("\n".join([*lines[:2], json.dumps(record), *lines[3:]]))
    assert trail.verify(*arguments) == (1, "record s-1/3/c is not the one that seal 2 closed")


def test_keys_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no key")
    with pytest.raises(UnfitKey, match=r"no\.pem is not a private key in PEM: make one with openssl"):
        Signer.from_file(tmp_path / "no.pem")
