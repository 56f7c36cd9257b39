"""A trail as lines of JSON, each with one key that names what the line is; and such lines as a trail again."""

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from turnkeeper.audit.verification import leaf_path
from turnkeeper.domain.audit import ChainEnd, Leaf, Seal, StoredRecord
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.audit import AuditStore, AuditTrail


class NoExport(Exception):
    """The lines were not written by an export, or they are cut off. The message names the line."""


class SealedPlace(NamedTuple):
    """A record's place in a seal, with the proof."""

    seal: Seal
    place: int
    """From 0."""
    path: tuple[str, ...]


async def lines_of_trail(trail: AuditTrail, tenant: str, *, after: int = 0) -> AsyncIterator[bytes]:
    """Yields a tenant's trail: each seal behind its records, then the records without a seal, then the end.

    Begins behind the seal with the number `after`.
    """
    end = await trail.chain_end(tenant)
    start = ChainEnd()
    async for seal in trail.seals(tenant):
        if seal.number == after:
            start = ChainEnd(seal.number, seal.hash)
        if after < seal.number <= end.number:
            async for record in trail.records(tenant, seal=seal.number):
                yield _line("record", _of_record(record))
            yield _line("seal", _of_seal(seal))
    unsealed = 0
    async for record in trail.records(tenant, seal=0):
        unsealed += 1
        yield _line("record", _of_record(record))
    ends = {"after": start.number, "after_hash": start.hash, "seals": end.number, "hash": end.hash}
    yield _line("end", {"tenant": tenant, **ends, "unsealed": unsealed})


async def lines_of_session(trail: AuditStore, key: SessionKey) -> AsyncIterator[bytes]:
    """Yields the session's records, each with the proof that its seal has it; those without a seal have no proof."""
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
        trail, ended = cls(), False
        for number, line in enumerate(lines, 1):
            kind, content = read_line(line, number)
            if ended:
                raise NoExport(f"line {number} follows the end of the export")
            try:
                if kind == "record":
                    record = _record_of(content)
                    trail._records.setdefault(record.seal, []).append(record)
                elif kind == "seal":
                    trail._seals.append(_seal_of(content))
                elif kind == "end":
                    trail.tenant, ended = str(content["tenant"]), True
                    trail.start = ChainEnd(_number(content["after"]), str(content["after_hash"]))
                    trail._end = ChainEnd(_number(content["seals"]), str(content["hash"]))
                else:
                    raise NoExport(f"line {number} is not of an export of the audit trail")
            except (KeyError, TypeError, ValueError):
                raise NoExport(f"line {number} lacks a field, or has another kind of value in it") from None
        if not ended:
            raise NoExport("the export has no end: it was cut off; export it again")
        return trail

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


def session_records(lines: Iterable[bytes]) -> Iterator[tuple[StoredRecord, SealedPlace | None]]:
    """Yields the records in the export of a session, each with its proof if it has one. Raises NoExport."""
    for number, line in enumerate(lines, 1):
        kind, content = read_line(line, number)
        if kind == "event":
            continue
        if kind != "audit":
            raise NoExport(f"line {number} is not of a session's export")
        try:
            yield _record_of(content), _place_of(content.get("proof"))
        except (KeyError, TypeError, ValueError):
            raise NoExport(f"line {number} lacks a field, or has another kind of value in it") from None


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
