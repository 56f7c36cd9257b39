"""Checks a trail: each record against its seal, each seal against the one before, its signature and logged hashes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from turnkeeper.audit.signing import PublicKeys
from turnkeeper.domain import merkle
from turnkeeper.domain.audit import ChainEnd, Seal, StoredRecord
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.audit import AuditTrail


class Tampered(Exception):
    """The trail is not as it was sealed. The message names the first record or seal that is wrong."""


@dataclass(slots=True)
class Verified:
    """What was found in order."""

    seals: int = 0
    sealed: int = 0
    unsealed: int = 0
    unsigned: int = 0
    """Seals without a signature before the first that has one."""
    last: str = ""
    """The name of the last seal."""


@dataclass(slots=True)
class Verification:
    """Checks one tenant's trail, seal by seal."""

    tenant: str
    keys: PublicKeys = field(default_factory=PublicKeys)
    logged: Mapping[int, str] = field(default_factory=dict)
    """Hashes of seals, by their numbers, as the log had them."""
    start: ChainEnd = field(default_factory=ChainEnd)
    """The seal behind which the trail begins: of an export that leaves out the beginning."""
    result: Verified = field(default_factory=Verified)
    _end: ChainEnd = field(init=False)
    _hashes: dict[int, str] = field(default_factory=dict)
    _signed: bool = False

    def __post_init__(self) -> None:
        self._end = self.start

    def seal(self, seal: Seal, records: Iterable[StoredRecord]) -> None:
        """Checks the next seal, and the records that name it. Raises Tampered."""
        expected = self._end.number + 1
        if seal.number != expected:
            what = "is missing" if seal.number > expected else "is out of its place"
            raise Tampered(f"seal {min(expected, seal.number)} of {self._who} {what}")
        content = _content(seal)
        self._check_content(seal, content)
        self._check_records(seal, list(records))
        if content.get("root") != merkle.root([_bytes(leaf.hash) for leaf in seal.leaves]).hex():
            raise Tampered(f"seal {seal.number} of {self._who} is altered: its root is not that of its records")
        self._check_signature(seal)
        self._end = ChainEnd(seal.number, seal.hash)
        self._hashes[seal.number] = seal.hash
        self.result.seals += 1
        self.result.sealed += len(seal.leaves)
        self.result.last = seal.name

    def unsealed(self, record: StoredRecord) -> None:
        """Checks a record that no seal has yet. Raises Tampered."""
        self._check_own(record)
        self.result.unsealed += 1

    def unlisted(self, record: StoredRecord) -> None:
        """Raises Tampered: the record names a seal that cannot be its own."""
        raise Tampered(f"record {record.id} of {self._who} is foreign: it names a seal that does not list it")

    def end(self, known: ChainEnd) -> Verified:
        """Checks that no seal is missing at the end. Returns what was found. Raises Tampered."""
        if known.number > self._end.number:
            raise Tampered(f"seal {self._end.number + 1} of {self._who} is missing")
        if known.number and self._hashes.get(known.number, known.hash) != known.hash:
            raise Tampered(f"seal {known.number} of {self._who} is altered: the chain ended with another one")
        if missing := [number for number in self.logged if number > self._end.number]:
            raise Tampered(f"seal {min(missing)} of {self._who} is missing: the log has its hash")
        if self.keys and self.result.seals and not self._signed:
            raise Tampered(f"seal 1 of {self._who} is unsigned, as all others")
        return self.result

    @property
    def _who(self) -> str:
        return f"tenant {self.tenant}" if self.tenant else "the service"

    def _check_content(self, seal: Seal, content: Mapping[str, object]) -> None:
        where = f"seal {seal.number} of {self._who} is altered"
        if self.logged.get(seal.number, seal.hash) != seal.hash:
            raise Tampered(f"{where}: the log has another hash of it")
        if (content.get("tenant"), content.get("number")) != (self.tenant, seal.number):
            raise Tampered(f"seal {seal.number} of {self._who} is foreign: it is of another tenant or place")
        if content.get("previous") != self._end.hash:
            if self._end.number:
                raise Tampered(
                    f"seal {self._end.number} of {self._who} is altered: seal {seal.number} has another hash of it"
                )
            raise Tampered(f"{where}: it is not the first one")
        if content.get("count") != len(seal.leaves):
            raise Tampered(f"{where}: it lists another number of records")

    def _check_records(self, seal: Seal, records: Sequence[StoredRecord]) -> None:
        by_id = {record.id: record for record in records}
        for leaf in seal.leaves:
            record = by_id.get(leaf.id)
            if record is None:
                raise Tampered(f"record {leaf.id} of {self._who}, seal {seal.number}, is missing")
            if record.leaf.hex() != leaf.hash:
                raise Tampered(f"record {leaf.id} of {self._who}, seal {seal.number}, is altered")
            self._check_own(record)
        left = Counter(record.id for record in records) - Counter(leaf.id for leaf in seal.leaves)
        for record in records:
            if record.id in left:
                self.unlisted(record)

    def _check_own(self, record: StoredRecord) -> None:
        """Raises Tampered unless the record's text is that of a record with this id of this tenant."""
        content = _parsed(record.text)
        if (content.get("tenant"), content.get("id")) != (self.tenant, record.id):
            raise Tampered(f"record {record.id} of {self._who} is foreign: its text is of another tenant or record")

    def _check_signature(self, seal: Seal) -> None:
        if not self.keys:
            return
        if not seal.signature and not self._signed:
            self.result.unsigned += 1
            return
        self._signed = True
        if problem := self.keys.problem_of(seal):
            raise Tampered(f"seal {seal.number} of {self._who} is altered: {problem}")


async def verify(trail: AuditTrail, check: Verification) -> Verified:
    """Checks a tenant's trail in a store. Raises Tampered.

    Records that are sealed meanwhile count as unsealed, or are left out.
    """
    tenant = check.tenant
    known = await trail.chain_end(tenant)
    last = check.start.number
    async for seal in trail.seals(tenant):
        check.seal(seal, [record async for record in trail.records(tenant, seal=seal.number)])
        last = seal.number
    unlisted = [record async for record in trail.unlisted_records(tenant, beyond=last)]
    sealed_meanwhile = range(last + 1, (await trail.chain_end(tenant)).number + 1)
    for record in unlisted:
        if record.seal not in sealed_meanwhile:
            check.unlisted(record)
    result = check.end(known)
    async for record in trail.records(tenant, seal=0):
        check.unsealed(record)
    return result


def leaf_path(seal: Seal, index: int) -> list[str]:
    """Returns the proof that the seal's record at `index` is under its root, in hexadecimal."""
    return [node.hex() for node in merkle.path([_bytes(leaf.hash) for leaf in seal.leaves], index)]


def check_own(record: StoredRecord, key: SessionKey) -> None:
    """Raises Tampered unless the record's text is that of a record with this id of this session."""
    content = _parsed(record.text)
    if (content.get("tenant"), content.get("session_id"), content.get("id")) != (*key, record.id):
        raise Tampered(f"record {record.id} is foreign: its text is of another session or record")


def check_inclusion(record: StoredRecord, seal: Seal, key: SessionKey, *, index: int, path: Sequence[str]) -> None:
    """Raises Tampered unless the record is one of this session, and the one at `index` of the seal of its tenant."""
    check_own(record, key)
    content = _content(seal)
    if (content.get("tenant"), content.get("number")) != (key.tenant, seal.number) or seal.tenant != key.tenant:
        raise Tampered(f"seal {seal.number} of tenant {key.tenant} is foreign: it is of another tenant or place")
    try:
        count = int(str(content.get("count")))
        root = merkle.root_of_path(record.leaf, [bytes.fromhex(node) for node in path], index=index, count=count)
    except ValueError:
        raise Tampered(f"record {record.id}: its proof cannot be read") from None
    if root.hex() != content.get("root"):
        raise Tampered(f"record {record.id} is not the one that seal {seal.number} closed")


def _content(seal: Seal) -> Mapping[str, object]:
    return _parsed(seal.text)


def _parsed(text: str) -> Mapping[str, object]:
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _bytes(hash_: str) -> bytes:
    """Returns the bytes of a hash; of what is none, bytes that no hash has."""
    try:
        return bytes.fromhex(hash_)
    except ValueError:
        return b""
