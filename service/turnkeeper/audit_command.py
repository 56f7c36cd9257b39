"""The command `turnkeeper audit verify`: checks the audit trail of a database, or of an export."""

import argparse
import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from turnkeeper import settings_sources
from turnkeeper.audit.export import ExportedSession, ExportedTrail, NoExport, read_line
from turnkeeper.audit.signing import PublicKeys
from turnkeeper.audit.verification import Tampered, Verification, Verified, check_inclusion, check_own, verify
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
    """Checks, and prints the result. Returns the exit status."""
    try:
        keys = PublicKeys.from_files([Path(path) for path in args.public_key])
        logged = _logged(args.expect)
        if args.file:
            return _verify_file(Path(args.file), keys, logged, tenant=args.tenant)
        return asyncio.run(_verify_database(args, keys, logged))
    except Tampered as problem:
        _say(str(problem))
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
            _check_expected(logged, args.tenant)
            tenants &= {args.tenant}
        if not tenants:
            whose = f" of tenant {args.tenant}" if args.tenant else ""
            raise SettingError(f"the database {settings.database} has no record{whose}: look for it in another one")
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
            _say(str(problem))
            status = TAMPERED
    return status


def _verify_file(path: Path, keys: PublicKeys, logged: Logged, *, tenant: str | None) -> int:
    with _lines(path) as lines:
        first = next(lines, b"")
        kind, _ = read_line(first, 1)
        if kind in ("event", "audit", "session_end"):
            return _verify_session(ExportedSession.read(_chain(first, lines)), keys, logged, tenant=tenant)
        trail = ExportedTrail.read(_chain(first, lines))
    _check_expected(logged, trail.tenant, tenant)
    check = Verification(trail.tenant, keys, logged.get(trail.tenant, {}), trail.start)
    _print(trail.tenant, asyncio.run(verify(trail, check)))
    return IN_ORDER


def _verify_session(session: ExportedSession, keys: PublicKeys, logged: Logged, *, tenant: str | None) -> int:
    """Checks the records in a session's export: each by its proof, the seal by its signature and the log."""
    _check_expected(logged, session.tenant, tenant)
    hashes = dict(logged.get(session.tenant, {}))
    unsealed = 0
    alone: set[int] = set()
    for record, place in session.records:
        if place is None:
            check_own(record, session.key)
            unsealed += 1
            continue
        check_inclusion(record, place.seal, session.key, index=place.place, path=place.path)
        seal, where = place.seal, f"seal {place.seal.number} of tenant {session.tenant} is altered"
        if (problem := keys.problem_of(seal)) if keys else "":
            raise Tampered(f"{where}: {problem}")
        if hashes.get(seal.number, seal.hash) != seal.hash:
            raise Tampered(f"{where}: the log has another hash of it")
        if not keys and seal.number not in hashes:
            alone.add(seal.number)
    proved = len(session.records) - unsealed
    by_file = f"; known from this file alone: seals {', '.join(map(str, sorted(alone)))}" if alone else ""
    _say(f"in order: {proved} records proved by their seals; {unsealed} without a seal{by_file}")
    return IN_ORDER


def _check_expected(logged: Logged, *tenants: str | None) -> None:
    """Raises SettingError unless all that is checked is of one tenant, and all that is expected, too."""
    names = {tenant for tenant in tenants if tenant is not None}
    if len(names | logged.keys()) > 1:
        shown = ", ".join(sorted(name or "(the service)" for name in names | logged.keys()))
        raise SettingError(f"one tenant is checked at a time with FILE or --tenant, and these are named: {shown}")


def _print(tenant: str, result: Verified) -> None:
    who = f"tenant {tenant}" if tenant else "the service"
    unsigned = f", {result.unsigned} of them unsigned" if result.unsigned else ""
    last = f"; last seal {result.last}" if result.last else ""
    _say(
        f"in order: {who}: {result.sealed} records in {result.seals} seals{unsigned}; "
        f"{result.unsealed} without a seal{last}"
    )


def _say(line: str) -> None:
    """Prints one line, whatever a name in it holds: names of records and tenants come from what is checked."""
    print("".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line))


def _logged(names: list[str]) -> Logged:
    logged: dict[str, dict[int, str]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise SettingError("--expect must be TENANT/NUMBER/HASH, as the log has it")
        tenant, number, hash_ = match.groups()
        if logged.setdefault(tenant, {}).setdefault(int(number), hash_) != hash_:
            raise Tampered(f"seal {number} of tenant {tenant} has two hashes in the log: its chain was forked")
    return logged


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[bytes]]:
    """Yields the lines of the file that are not empty."""
    with path.open("rb") as file:
        yield (line for line in file if line.strip())


def _chain(first: bytes, lines: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from lines
