"""The documents of the audit trail. A record's text is stored as it was hashed; the rest only finds it."""

from turnkeeper.domain.audit import AuditRecord, Leaf, Seal, StoredRecord
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.documents import SCHEMA


def audit_document(record: AuditRecord) -> Document:
    """Returns the document to insert."""
    return {
        "_id": {"tenant": record.tenant, "id": record.id},
        "tenant": record.tenant,
        "session_id": record.session_id,
        "seq": record.sequence,
        "at": record.at,
        "text": record.text,
        "seal": 0,
        "schema": SCHEMA,
    }


def record_of(document: Document) -> StoredRecord:
    """Returns what a document holds. It may have been changed by hand: what is not text becomes text.

    A document with another kind of key than ours has a record id that no record has. Otherwise two could have one id.
    """
    key, seal, tenant = document["_id"], document.get("seal"), document["tenant"]
    id_ = key.get("id") if isinstance(key, dict) else None
    if not isinstance(id_, str) or list(key.items()) != [("tenant", tenant), ("id", id_)]:
        id_ = str(key)
    return StoredRecord(id_, str(document.get("text")), seal if isinstance(seal, int) else -1)


def seal_document(seal: Seal) -> Document:
    """Returns the document to insert."""
    return {
        "_id": {"tenant": seal.tenant, "number": seal.number},
        "tenant": seal.tenant,
        "number": seal.number,
        "text": seal.text,
        "hash": seal.hash,
        "leaves": [list(leaf) for leaf in seal.leaves],
        "signature": seal.signature,
        "key_id": seal.key_id,
        "schema": SCHEMA,
    }


def seal_of_document(document: Document) -> Seal:
    """Returns what a document holds. It may have been changed by hand. Its hash is computed from its text."""
    leaves = document.get("leaves")
    pairs = [leaf for leaf in leaves if isinstance(leaf, list) and len(leaf) == 2] if isinstance(leaves, list) else []
    number = document.get("number")
    return Seal(
        tenant=str(document.get("tenant")),
        number=number if isinstance(number, int) else 0,
        text=str(document.get("text")),
        leaves=tuple(Leaf(str(id_), str(hash_)) for id_, hash_ in pairs),
        signature=str(document.get("signature", "")),
        key_id=str(document.get("key_id", "")),
    )
