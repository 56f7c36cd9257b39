"""The check of a call: who makes it, whether the method admits it, and a stream's check again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from turnkeeper.errors import (
    InvalidRequest,
    PermissionDenied,
    PrincipalUnknown,
    ServiceUnavailable,
    SessionError,
    Unauthenticated,
)
from turnkeeper.identity.caller import AccessRole
from turnkeeper.identity.credential import Credential, CredentialKind, Refusal, refused
from turnkeeper.identity.principals import Principals
from turnkeeper.rpc.access import ANY_CREDENTIAL, OPEN, Access
from turnkeeper.rpc.identity import _CHECKED, ON_BEHALF_OF, CallerCheck, caller_of

FILE = """
[[principal]]
name = "anna"
tenant = "acme"
roles = ["caller", "operator"]
certificates = ["anna"]
[[principal]]
name = "portal"
tenant = "acme"
roles = ["delegate"]
certificates = ["portal"]
"""
CALLERS = Access(frozenset({AccessRole.CALLER}))
AUDITORS = Access(frozenset({AccessRole.AUDITOR}))


class Call:
    """The context of a call with this metadata."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata = metadata

    def invocation_metadata(self) -> Any:
        return self.metadata


class Certificates:
    """Takes the metadata `name` for a checked certificate."""

    expires_at: float | None = None
    error: SessionError | None = None

    async def credential(self, context: Any) -> Credential:
        if self.error is not None:
            raise self.error
        names = [value for key, value in context.invocation_metadata() if key == "name"]
        if not names:
            raise refused(Refusal.MISSING)
        return Credential(CredentialKind.CERTIFICATE, names[0], expires_at=self.expires_at)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "principals.toml").write_text(FILE)
    token = _CHECKED.set(None)  # type: ignore[arg-type]
    yield tmp_path / "principals.toml"
    _CHECKED.reset(token)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def check_of(path: Path, certificates: Certificates | None = None, recheck: float = 60, **options: Any) -> CallerCheck:
    return CallerCheck(certificates or Certificates(), Principals(path), recheck=recheck, **options)


async def test_the_caller_has_the_roles_that_the_method_admits(path: Path) -> None:
    call: Any = Call(("name", "anna"))
    await check_of(path).check(call, CALLERS)
    caller = caller_of(call)
    assert (caller.tenant, caller.principal) == ("acme", "anna")
    assert caller.roles == {AccessRole.CALLER}


async def test_a_person_calls_through_a_delegate(path: Path) -> None:
    call: Any = Call(("name", "portal"), (ON_BEHALF_OF, "anna"))
    await check_of(path).check(call, CALLERS)
    assert (caller_of(call).principal, caller_of(call).through) == ("anna", "portal")


@pytest.mark.parametrize(
    ("metadata", "access", "error"),
    [
        ((), CALLERS, Unauthenticated),
        ((), ANY_CREDENTIAL, Unauthenticated),
        ((("name", "bob"),), CALLERS, PrincipalUnknown),
        ((("name", "anna"),), AUDITORS, PermissionDenied),
        ((("name", "portal"),), CALLERS, PermissionDenied),
        ((("name", "anna"), (ON_BEHALF_OF, "anna")), CALLERS, PermissionDenied),
        ((("name", "portal"), (ON_BEHALF_OF, "bob")), CALLERS, PrincipalUnknown),
        ((("name", "portal"), (ON_BEHALF_OF, "")), CALLERS, InvalidRequest),
        ((("name", "portal"), (ON_BEHALF_OF, "anna"), (ON_BEHALF_OF, "bob")), CALLERS, InvalidRequest),
    ],
)
async def test_a_call_is_refused(
    path: Path, metadata: tuple[tuple[str, str], ...], access: Access, error: type[Exception]
) -> None:
    call: Any = Call(*metadata)
    with pytest.raises(error):
        await check_of(path).check(call, access)


@pytest.mark.parametrize(("metadata", "access"), [((), OPEN), ((("name", "bob"),), ANY_CREDENTIAL)])
async def test_some_methods_ask_for_less(path: Path, metadata: tuple[tuple[str, str], ...], access: Access) -> None:
    call: Any = Call(*metadata)
    await check_of(path).check(call, access)


async def test_a_stream_ends_when_its_credential_does(path: Path) -> None:
    certificates, now = Certificates(), 99.0
    certificates.expires_at = 100.0
    callers = check_of(path, certificates, recheck=0, clock=lambda: now)
    call: Any = Call(("name", "anna"))
    await callers.check(call, CALLERS)
    stream = callers.of_call(call)
    await stream.again()
    now = 100.0
    with pytest.raises(Unauthenticated) as ended:
        await stream.again()
    assert ended.value.metadata == {"reason": "EXPIRED"}


@pytest.mark.parametrize(
    "changed", [FILE.replace('"caller", ', ""), FILE.replace('"anna"', '"bob"'), FILE.replace("acme", "globex")]
)
async def test_a_stream_ends_when_the_principals_file_takes_its_caller_away(path: Path, changed: str) -> None:
    principals = Principals(path)
    callers = CallerCheck(Certificates(), principals, recheck=0)
    call: Any = Call(("name", "anna"))
    await callers.check(call, CALLERS)
    stream = callers.of_call(call)
    assert principals.file is not None
    write(path, FILE + "# the same\n")
    await principals.file.look()
    await stream.again()
    write(path, changed)
    await principals.file.look()
    with pytest.raises(Unauthenticated) as ended:
        await stream.again()
    assert ended.value.metadata == {"reason": "REVOKED"}


async def test_a_stream_ends_when_its_credential_is_no_longer_valid(path: Path) -> None:
    certificates = Certificates()
    callers = check_of(path, certificates, recheck=0)
    call: Any = Call(("name", "anna"))
    await callers.check(call, CALLERS)
    stream = callers.of_call(call)
    certificates.error = ServiceUnavailable()
    await stream.again()
    certificates.error = refused(Refusal.UNKNOWN_KEY)
    with pytest.raises(Unauthenticated) as ended:
        await stream.again()
    assert ended.value.metadata == {"reason": "UNKNOWN_KEY"}
