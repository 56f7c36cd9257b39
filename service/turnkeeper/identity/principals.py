"""The principals file: who a credential belongs to. The format is published in docs/reference/authorization.md."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from turnkeeper.checked_toml import checked_toml
from turnkeeper.errors import PermissionDenied, PrincipalUnknown
from turnkeeper.identity.caller import DEFAULT_CALLER, LENDABLE, AccessRole, Caller
from turnkeeper.identity.credential import Credential, CredentialKind
from turnkeeper.toml_file import TomlFile
from turnkeeper.watched_file import BadFile, WatchedFile

MAX_BYTES: Final = 32 << 20
"""The greatest size of the file. A longer one is a mistake, such as a log or a device."""
MAX_GROUPS: Final = 64
"""The most groups of one principal."""

_Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
_Principal = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,256}$")]
"""Visible ASCII: metadata carries it, too."""
_Group = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,64}$")]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=2048)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Token(_Row):
    """The tokens of one issuer that belong to the principal: by their subject, by the values of claims, or by both."""

    issuer: _Text
    subject: _Text = ""
    claims: Annotated[Mapping[_Text, _Text], Field(max_length=16)] = {}

    def fits(self, claims: Mapping[str, object]) -> bool:
        """Returns True if a token with these claims is one of them. A claim with a list fits by one of its items."""
        return all(_has(claims.get(name), value) for name, value in self.claims.items())


class _PrincipalRow(_Row):
    name: _Principal
    tenant: _Tenant
    roles: Annotated[frozenset[AccessRole], Field(min_length=1)]
    groups: Annotated[frozenset[_Group], Field(max_length=MAX_GROUPS)] = frozenset()
    certificates: Annotated[tuple[_Text, ...], Field(max_length=64)] = ()
    tokens: Annotated[tuple[_Token, ...], Field(max_length=64)] = ()


class _File(_Row):
    principal: Annotated[tuple[_PrincipalRow, ...], Field(max_length=100_000)] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of the file, by what they are searched for."""

    persons: Mapping[tuple[str, str], Caller] = field(default_factory=dict)
    """By tenant and principal."""
    certificates: Mapping[str, Caller] = field(default_factory=dict)
    """By SPIFFE id or subject."""
    subjects: Mapping[tuple[str, str], Caller] = field(default_factory=dict)
    """By issuer and subject, of rows that ask for no claims."""
    claims: Mapping[str, tuple[tuple[_Token, Caller], ...]] = field(default_factory=dict)
    """By issuer, in the order of the file: the rows that ask for claims."""

    def of(self, credential: Credential) -> Caller | None:
        """Returns the principal of a credential, or None if it has no row. The first row whose claims fit counts."""
        if credential.kind is CredentialKind.CERTIFICATE:
            return self.certificates.get(credential.id)
        issuer, subject = credential.claims.get("iss"), credential.claims.get("sub")
        if not isinstance(issuer, str):
            return None
        if isinstance(subject, str) and (person := self.subjects.get((issuer, subject))):
            return person
        for token, person in self.claims.get(issuer, ()):
            if token.subject in ("", subject) and token.fits(credential.claims):
                return person
        return None


def parse(path: Path, content: bytes) -> Table:
    """Returns the table of a file's content. Raises BadFile, which names file, line and key."""
    file, values = checked_toml(path, content, _File)
    if not values.principal:
        raise BadFile(f"{path}: it has no row [[principal]], so that all callers would be refused")
    builder = _TableBuilder(file)
    for number, row in enumerate(values.principal):
        builder.add(number, row)
    return builder.table()


class _TableBuilder:
    """Builds the table row by row. Refuses a credential, or a principal, that has a row before."""

    def __init__(self, file: TomlFile) -> None:
        self._file = file
        self._persons: dict[tuple[str, str], Caller] = {}
        self._certificates: dict[str, Caller] = {}
        self._subjects: dict[tuple[str, str], Caller] = {}
        self._claims: dict[str, list[tuple[_Token, Caller]]] = {}

    def add(self, number: int, row: _PrincipalRow) -> None:
        """Adds the row with this number, from 0."""
        person = Caller(tenant=row.tenant, principal=row.name, groups=row.groups, roles=row.roles)
        if (row.tenant, row.name) in self._persons:
            where = f"{row.name} of tenant {row.tenant}: write all its credentials there"
            raise self._twice(number, "name", where)
        self._persons[row.tenant, row.name] = person
        for certificate in row.certificates:
            if certificate in self._certificates:
                raise self._twice(number, "certificates", certificate)
            self._certificates[certificate] = person
        for token in row.tokens:
            self._add_token(number, token, person)

    def _add_token(self, number: int, token: _Token, person: Caller) -> None:
        if token.claims:
            self._claims.setdefault(token.issuer, []).append((token, person))
            return
        if not token.subject:
            raise BadFile(f"{_place(self._file, number, 'tokens')} need a subject or claims")
        if (token.issuer, token.subject) in self._subjects:
            raise self._twice(number, "tokens", f"{token.subject} of {token.issuer}")
        self._subjects[token.issuer, token.subject] = person

    def _twice(self, number: int, key: str, what: str) -> BadFile:
        return BadFile(f"{_place(self._file, number, key)} is that of a principal before: {what}")

    def table(self) -> Table:
        """Returns the table of all rows."""
        claims = {issuer: tuple(tokens) for issuer, tokens in self._claims.items()}
        return Table(self._persons, self._certificates, self._subjects, claims)


def _place(file: TomlFile, number: int, key: str) -> str:
    return f"{file.place('principal', number, key)}: principal {number + 1}, {key}"


def _has(value: object, expected: str) -> bool:
    return expected in value if isinstance(value, list) else expected == value


class Principals:
    """Maps checked credentials to callers, by the principals file as it is now."""

    def __init__(self, path: Path | None = None) -> None:
        """Without a file there is no principal but the one of identity `none`. Raises BadFile."""
        self.file: WatchedFile[Table] | None = None
        if path is not None:
            self.file = WatchedFile(path, lambda content: parse(path, content), name="principals", max_bytes=MAX_BYTES)

    def report_to(self, report: Callable[[str, str], None]) -> None:
        """Reports each change of the file: `report` is called as that of WatchedFile."""
        if self.file is not None:
            self.file.report = report

    async def run(self) -> None:
        """Follows the file until it is cancelled. Returns at once if there is none."""
        if self.file is not None:
            await self.file.run()

    @property
    def generation(self) -> int:
        """Returns a number that changes when the file's rows do."""
        return self.file.generation if self.file else 0

    @property
    def _table(self) -> Table:
        return self.file.value if self.file else Table()

    def person(self, tenant: str, name: str) -> Caller | None:
        """Returns the principal of this name with all its roles, or None if the tenant has none."""
        return self._table.persons.get((tenant, name))

    def groups_of(self, tenant: str, principal: str) -> frozenset[str]:
        """Returns the groups of a principal; none if the file has no row of it."""
        person = self._table.persons.get((tenant, principal))
        return frozenset() if person is None else person.groups

    def caller(self, credential: Credential, *, on_behalf_of: str = "") -> Caller:
        """Returns who makes a call with this credential, on behalf of a person of its tenant if one is named.

        Raises PrincipalUnknown for a credential or a person without a row, and PermissionDenied if the caller names a
        person without the role DELEGATE.
        """
        if credential.kind is CredentialKind.NONE:
            caller: Caller | None = DEFAULT_CALLER
        else:
            caller = self._table.of(credential)
        if caller is None:
            raise PrincipalUnknown(metadata={"credential_id": credential.id})
        caller = replace(caller, credential_id=credential.id)
        return self._person(caller, on_behalf_of) if on_behalf_of else caller

    def _person(self, delegate: Caller, name: str) -> Caller:
        if AccessRole.DELEGATE not in delegate.roles:
            raise PermissionDenied("Only the role delegate may act on behalf of another person.")
        person = self.person(delegate.tenant, name)
        if person is None:
            raise PrincipalUnknown(
                "The person on whose behalf the call is made is not in the principals file of this tenant.",
                metadata={"on_behalf_of": name},
            )
        return replace(person.within(LENDABLE), credential_id=delegate.credential_id, through=delegate.principal)
