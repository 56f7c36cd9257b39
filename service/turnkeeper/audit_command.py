"""The command `turnkeeper audit verify`: checks the audit trail of a database, or of an export."""

import argparse
import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from turnkeeper import settings_sources
from turnkeeper.audit.export import ExportedTrail, NoExport, read_line, session_records
from turnkeeper.audit.signing import PublicKeys
from turnkeeper.audit.verification import Tampered, Verification, Verified, check_inclusion, verify
from turnkeeper.bootstrap import report_error
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.start_errors import SettingError
from turnkeeper.store.audit import AuditTrail
from turnkeeper.store.mongo.audits import TrailReader
from turnkeeper.store.mongo.indexes import UnfitDatabase

IN_ORDER: Final = 0
TAMPERED: Final = 1
NOT_CHECKED: Final = 2

_NAME: Final = re.compile(r"([A-Za-z0-9._-]*)/([1-9][0-9]{0,17})/([0-9a-f]{64})")
"""A seal as the log names it."""

Logged = Mapping[str, Mapping[int, str]]
"""Hashes of seals that the log had, by tenant and number."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="an export of a trail or a session; else the database")
    parser.add_argument("--tenant", help="check the trail of this tenant alone")
    parser.add_argument(
        "--public-key",
        action="append",
        default=[],
        metavar="PEM",
        help="seals must be signed by this key",
    )
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="SEAL",
        help="TENANT/NUMBER/HASH, a seal as the log has it: it must be there with this hash",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with the database's settings [TURNKEEPER_CONFIG]")
    parser.add_argument("--mongodb-uri", dest="mongodb_uri", help="URI of the replica set [MONGODB_URI]")
    parser.add_argument("--database", help="name of the database [TURNKEEPER_DATABASE; turnkeeper]")


def run(args: argparse.Namespace) -> int:
    """Checks, and prints what was result. Returns the exit status."""
    try:
        keys = PublicKeys.from_files([Path(path) for path in args.public_key])
        logged = _logged(args.expect)
        if args.file:
            return _verify_file(Path(args.file), keys, logged, tenant=args.tenant)
        return asyncio.run(_verify_database(args, keys, logged))
    except Tampered as problem:
        print(problem)
        return TAMPERED
    except (NoExport, SettingError, UnfitDatabase) as error:
        report_error("audit verify", error)
    except OSError as error:
        report_error("audit verify", SettingError(f"{args.file} cannot be read: {error.strerror}"))
    except ServiceUnavailable:
        report_error("audit verify", SettingError("the database of MONGODB_URI does not answer"))
    return NOT_CHECKED


async def _verify_database(args: argparse.Namespace, keys: PublicKeys, logged: Logged) -> int:
    settings = settings_sources.load(args)
    if not settings.mongodb_uri:
        raise SettingError("no database is set: name an export, or set MONGODB_URI")
    reader = TrailReader(settings.mongodb_uri, database=settings.database, operation=settings.operation_time)
    try:
        tenants = set(await reader.audited_tenants()) | logged.keys()
        if args.tenant is not None:
            tenants = {args.tenant}
        return await _verify_trails(reader, sorted(tenants), keys, logged)
    finally:
        await reader.close()


async def _verify_trails(trail: AuditTrail, tenants: list[str], keys: PublicKeys, logged: Logged) -> int:
    """Checks the trail of each tenant, also behind one that is not in order."""
    status = IN_ORDER
    for tenant in tenants:
        check = Verification(tenant, keys, logged.get(tenant, {}))
        try:
            _print(tenant, await verify(trail, check))
        except Tampered as problem:
            print(problem)
            status = TAMPERED
    if not tenants:
        print("there is no record")
    return status


def _verify_file(path: Path, keys: PublicKeys, logged: Logged, *, tenant: str | None) -> int:
    with _lines(path) as lines:
        first = next(lines, b"")
        kind, _ = read_line(first, 1)
        if kind in ("event", "audit"):
            return _verify_session(_chain(first, lines), keys, logged)
        trail = ExportedTrail.read(_chain(first, lines))
    if tenant not in (None, trail.tenant):
        raise NoExport(f"the export is of tenant {trail.tenant or '(the service)'}")
    check = Verification(trail.tenant, keys, logged.get(trail.tenant, {}), trail.start)
    _print(trail.tenant, asyncio.run(verify(trail, check)))
    return IN_ORDER


def _verify_session(lines: Iterator[bytes], keys: PublicKeys, logged: Logged) -> int:
    """Checks the records in a session's export: each by its proof, the seal by its signature and the log."""
    proved = unsealed = 0
    for record, place in session_records(lines):
        if place is None:
            unsealed += 1
            continue
        seal = place.seal
        check_inclusion(record, seal, index=place.place, path=place.path)
        if (problem := keys.problem_of(seal)) if keys else "":
            raise Tampered(f"seal {seal.number} of tenant {seal.tenant} is altered: {problem}")
        if logged.get(seal.tenant, {}).get(seal.number, seal.hash) != seal.hash:
            raise Tampered(f"seal {seal.number} of tenant {seal.tenant} is altered: the log has another hash of it")
        proved += 1
    print(f"in order: {proved} records proved by their seals; {unsealed} without a seal")
    return IN_ORDER


def _print(tenant: str, result: Verified) -> None:
    who = f"tenant {tenant}" if tenant else "the service"
    unsigned = f", {result.unsigned} of them unsigned" if result.unsigned else ""
    last = f"; last seal {result.last}" if result.last else ""
    print(
        f"in order: {who}: {result.sealed} records in {result.seals} seals{unsigned}; "
        f"{result.unsealed} without a seal{last}"
    )


def _logged(names: list[str]) -> Logged:
    logged: dict[str, dict[int, str]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise SettingError("--expect must be TENANT/NUMBER/HASH, as the log has it")
        tenant, number, hash_ = match.groups()
        logged.setdefault(tenant, {})[int(number)] = hash_
    return logged


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[bytes]]:
    """Yields the lines of the file that are not empty."""
    with path.open("rb") as file:
        yield (line for line in file if line.strip())


def _chain(first: bytes, lines: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from lines
