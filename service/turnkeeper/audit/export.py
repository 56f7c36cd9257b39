"""A trail as lines of JSON, each with one key that names what the line is; and such lines as a trail again."""

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from turnkeeper.audit.verification import leaf_path
from turnkeeper.domain.audit import ChainEnd, Leaf, Seal, StoredRecord
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.audit import AuditStore, AuditTrail


class NoExport(Exception):
    """The lines were not written by an export, or they are cut off. The message names the line."""


class NoSuchSeal(Exception):
    """The trail has no seal behind which the export could begin."""

    def __init__(self, last: int) -> None:
        """`last` is the number of the last seal."""
        super().__init__(last)
        self.last = last


class SealedPlace(NamedTuple):
    """A record's place in a seal, with the proof."""

    seal: Seal
    place: int
    """From 0."""
    path: tuple[str, ...]


async def lines_of_trail(trail: AuditTrail, tenant: str, *, after: int = 0) -> AsyncIterator[bytes]:
    """Yields a tenant's trail: each seal behind its records, then the records without a seal, then the end.

    Begins behind the seal with the number `after`. Raises NoSuchSeal if there is none yet.
    """
    end = await trail.chain_end(tenant)
    if after > end.number:
        raise NoSuchSeal(end.number)
    start = ChainEnd(after)
    async for seal in trail.seals(tenant):
        if seal.number == after:
            start = ChainEnd(seal.number, seal.hash)
        if after < seal.number <= end.number:
            async for record in trail.records(tenant, seal=seal.number):
                yield _line("record", _of_record(record))
            yield _line("seal", _of_seal(seal))
    unsealed = 0
    async for record in _beyond(trail, tenant, end.number):
        unsealed += not record.seal
        yield _line("record", _of_record(record))
    ends = {"after": start.number, "after_hash": start.hash, "seals": end.number, "hash": end.hash}
    yield _line("end", {"tenant": tenant, **ends, "unsealed": unsealed})


async def _beyond(trail: AuditTrail, tenant: str, last: int) -> AsyncIterator[StoredRecord]:
    """Yields the records without a seal. One that got its seal meanwhile has none in this export.

    One that names a seal which is not there keeps its number, and is named by `verify`.
    """
    unsealed = set[str]()
    async for record in trail.records(tenant, seal=0):
        unsealed.add(record.id)
        yield record
    since = [record async for record in trail.unlisted_records(tenant, beyond=last) if record.id not in unsealed]
    newest = (await trail.chain_end(tenant)).number if since else last
    for record in since:
        yield record._replace(seal=0) if last < record.seal <= newest else record


async def lines_of_session(trail: AuditStore, key: SessionKey) -> AsyncIterator[bytes]:
    """Yields the session's records, each with the proof that its seal has it if it has one; then the end."""
    records = await trail.records_of_session(key)
    numbers = {record.seal for record in records if record.seal > 0}
    seals = {seal.number: seal async for seal in trail.seals(key.tenant, numbers=numbers)} if numbers else {}
    for record in records:
        seal = seals.get(record.seal)
        places = [leaf.id for leaf in seal.leaves] if seal is not None else []
        if seal is None or record.id not in places:
            yield _line("audit", _of_record(record))
            continue
        index = places.index(record.id)
        proof = {**_of_seal(seal), "index": index, "path": leaf_path(seal, index)}
        del proof["leaves"]
        yield _line("audit", {**_of_record(record), "proof": proof})
    yield _line("session_end", {"tenant": key.tenant, "session_id": key.session_id, "records": len(records)})


@dataclass(slots=True)
class ExportedTrail:
    """Implements `AuditTrail` for one tenant, by the lines of its export."""

    tenant: str = ""
    start: ChainEnd = field(default_factory=ChainEnd)
    """The seal behind which the export begins."""
    _end: ChainEnd = field(default_factory=ChainEnd)
    _seals: list[Seal] = field(default_factory=list)
    _records: dict[int, list[StoredRecord]] = field(default_factory=dict)

    @classmethod
    def read(cls, lines: Iterable[bytes]) -> "ExportedTrail":
        """Returns the trail. Raises NoExport."""
        trail = cls()
        _read(lines, {"record": trail._take_record, "seal": trail._take_seal, "end": trail._take_end}, end="end")
        return trail

    def _take_record(self, content: Mapping[str, object]) -> None:
        record = _record_of(content)
        self._records.setdefault(record.seal, []).append(record)

    def _take_seal(self, content: Mapping[str, object]) -> None:
        self._seals.append(_seal_of(content))

    def _take_end(self, content: Mapping[str, object]) -> None:
        self.tenant = str(content["tenant"])
        self.start = ChainEnd(_number(content["after"]), str(content["after_hash"]))
        self._end = ChainEnd(_number(content["seals"]), str(content["hash"]))
        if _number(content["unsealed"]) != len(self._records.get(0, ())):
            raise NoExport("the export lacks lines, or has more: its end counts other records without a seal")

    async def audited_tenants(self) -> Collection[str]:
        return [self.tenant]

    async def chain_end(self, tenant: str) -> ChainEnd:
        return self._end if tenant == self.tenant else ChainEnd()

    async def seals(self, tenant: str, *, numbers: Collection[int] = ()) -> AsyncIterator[Seal]:
        for seal in self._seals:
            if tenant == self.tenant and (not numbers or seal.number in numbers):
                yield seal

    async def records(self, tenant: str, *, seal: int) -> AsyncIterator[StoredRecord]:
        for record in self._records.get(seal, ()):
            if tenant == self.tenant:
                yield record

    async def unlisted_records(self, tenant: str, *, beyond: int) -> AsyncIterator[StoredRecord]:
        for seal, records in self._records.items():
            if tenant == self.tenant and not 0 <= seal <= beyond:
                for record in records:
                    yield record


@dataclass(slots=True)
class ExportedSession:
    """The records in the export of a session, each with its proof if it has one."""

    key: SessionKey
    records: list[tuple[StoredRecord, SealedPlace | None]] = field(default_factory=list)

    @property
    def tenant(self) -> str:
        """Returns the session's tenant."""
        return self.key.tenant

    @classmethod
    def read(cls, lines: Iterable[bytes]) -> "ExportedSession":
        """Returns the session. Raises NoExport."""
        session = cls(SessionKey("", ""))
        take = {"event": lambda _: None, "audit": session._take_record, "session_end": session._take_end}
        _read(lines, take, end="session_end")
        return session

    def _take_record(self, content: Mapping[str, object]) -> None:
        self.records.append((_record_of(content), _place_of(content.get("proof"))))

    def _take_end(self, content: Mapping[str, object]) -> None:
        self.key = SessionKey(str(content["tenant"]), str(content["session_id"]))
        if _number(content["records"]) != len(self.records):
            raise NoExport("the export lacks lines, or has more: its end counts other records")


def _read(lines: Iterable[bytes], take: Mapping[str, Callable[[Mapping[str, object]], None]], *, end: str) -> None:
    """Passes the content of each line to what takes its kind. Raises NoExport unless the last line is of kind `end`."""
    ended = False
    for number, line in enumerate(lines, 1):
        kind, content = read_line(line, number)
        if ended:
            raise NoExport(f"line {number} follows the end of the export")
        if kind not in take:
            raise NoExport(f"line {number} is not of such an export")
        try:
            take[kind](content)
        except (KeyError, TypeError, ValueError):
            raise NoExport(f"line {number} lacks a field, or has another kind of value in it") from None
        ended = kind == end
    if not ended:
        raise NoExport("the export has no end: it was cut off; export it again")


def _place_of(proof: object) -> SealedPlace | None:
    if proof is None:
        return None
    if not isinstance(proof, dict) or not isinstance(path := proof["path"], list):
        raise TypeError
    return SealedPlace(_seal_of(proof), _number(proof["index"]), tuple(map(str, path)))


def _line(kind: str, content: Mapping[str, object]) -> bytes:
    return orjson.dumps({kind: content}, option=orjson.OPT_APPEND_NEWLINE)


def read_line(line: bytes, number: int) -> tuple[str, Mapping[str, object]]:
    """Returns what the line with this number is, and its content. Raises NoExport."""
    try:
        ((kind, content),) = orjson.loads(line).items()
    except (orjson.JSONDecodeError, AttributeError, ValueError):
        raise NoExport(f"line {number} is not a line of an export") from None
    if not isinstance(content, dict):
        raise NoExport(f"line {number} is not a line of an export")
    return kind, content


def _of_record(record: StoredRecord) -> dict[str, object]:
    return {"seal": record.seal, "id": record.id, "text": record.text}


def _of_seal(seal: Seal) -> dict[str, object]:
    return {
        "tenant": seal.tenant,
        "number": seal.number,
        "text": seal.text,
        "hash": seal.hash,
        "signature": seal.signature,
        "key_id": seal.key_id,
        "leaves": [list(leaf) for leaf in seal.leaves],
    }


def _record_of(content: Mapping[str, object]) -> StoredRecord:
    return StoredRecord(str(content["id"]), str(content["text"]), _number(content["seal"]))


def _seal_of(content: Mapping[str, object]) -> Seal:
    leaves = content.get("leaves", [])
    if not isinstance(leaves, list):
        raise TypeError
    return Seal(
        tenant=str(content["tenant"]),
        number=_number(content["number"]),
        text=str(content["text"]),
        leaves=tuple(Leaf(str(id_), str(hash_)) for id_, hash_ in leaves),
        signature=str(content["signature"]),
        key_id=str(content["key_id"]),
    )


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError
    return value
