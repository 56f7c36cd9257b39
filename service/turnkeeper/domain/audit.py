"""The audit trail: a record of each decision and operation, and the seals by which a later change of one is noticed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from turnkeeper.domain import merkle


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who made a call."""

    principal: str = ""
    """Whose credential it was; empty if no caller had to do with it."""
    credential_id: str = ""
    on_behalf_of: str = ""
    """The person for whom a delegate made the call."""
    request_id: str = ""
    """The caller's `x-request-id`."""

    @property
    def through(self) -> str:
        """Returns the delegate that made the call on behalf of a person; empty without one."""
        return self.principal if self.on_behalf_of else ""


NO_ORIGIN = Origin()
"""The origin of what the service does by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """What one call or one start did, and who made it. Never changed, never removed."""

    tenant: str
    """Empty for what belongs to the service itself, such as the agents that it loaded."""
    id: str
    """Unique in its tenant: of a session's event its session, number and changeset; else a ULID."""
    session_id: str = ""
    sequence: int = 0
    """The number of the event that was stored together with it; 0 without one."""
    at: datetime
    """The replica's time."""
    action: str
    """Such as `decide_approval`."""
    target: str = ""
    """What it was done to, such as an approval's id."""
    outcome: str
    origin: Origin = NO_ORIGIN
    details: Mapping[str, str] = field(default_factory=dict)

    def of_changeset(self, changeset_id: str) -> "AuditRecord":
        """Returns the record with the id that it has in a changeset.

        The changeset's id tells apart two sessions that had one id after each other.
        """
        return replace(self, id=f"{self.session_id}/{self.sequence}/{changeset_id}")

    @property
    def text(self) -> str:
        """Returns the record as canonical JSON: what is stored, hashed and exported."""
        content = {
            "tenant": self.tenant,
            "id": self.id,
            "session_id": self.session_id,
            "sequence": self.sequence,
            "at": _time(self.at),
            "action": self.action,
            "target": self.target,
            "outcome": self.outcome,
            "principal": self.origin.principal,
            "credential_id": self.origin.credential_id,
            "on_behalf_of": self.origin.on_behalf_of,
            "request_id": self.origin.request_id,
            "details": dict(self.details),
        }
        return _canonical(content)


class StoredRecord(NamedTuple):
    """A record as the store has it. Its text is not parsed: it counts as it is."""

    id: str
    text: str
    seal: int = 0
    """The number of its seal; 0 for none yet."""

    @property
    def leaf(self) -> bytes:
        """Returns the hash of the record."""
        return merkle.leaf_hash(self.text.encode())


class Leaf(NamedTuple):
    """A record's place in a seal."""

    id: str
    hash: str
    """Hexadecimal, as all hashes here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Closes some records of a tenant: their order, their hashes, and the hash of the seal before."""

    tenant: str
    number: int
    """From 1, without a gap."""
    text: str
    """Canonical JSON: tenant, number, time, count, root and the hash of the seal before."""
    leaves: tuple[Leaf, ...]
    signature: str = ""
    """Of the seal's hash, by Ed25519, in hexadecimal; empty without a key."""
    key_id: str = ""
    """The SHA-256 of the public key that the signature is by."""

    @property
    def hash(self) -> str:
        """Returns the hash of the seal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Returns the seal's tenant, number and hash, as the log has them and `verify --expect` takes them."""
        return f"{self.tenant}/{self.number}/{self.hash}"


class ChainEnd(NamedTuple):
    """The last seal of a tenant."""

    number: int = 0
    """0: there is none."""
    hash: str = ""


def seal_of(tenant: str, records: list[StoredRecord], *, after: ChainEnd, at: datetime) -> Seal:
    """Returns the seal of these records, without a signature."""
    hashes = [record.leaf for record in records]
    content = {
        "tenant": tenant,
        "number": after.number + 1,
        "at": _time(at),
        "count": len(records),
        "root": merkle.root(hashes).hex(),
        "previous": after.hash,
    }
    leaves = (Leaf(record.id, leaf.hex()) for record, leaf in zip(records, hashes, strict=True))
    return Seal(tenant=tenant, number=after.number + 1, text=_canonical(content), leaves=tuple(leaves))


def _canonical(content: Mapping[str, object]) -> str:
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode()


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
