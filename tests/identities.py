"""Callers with an identity: a server's check that takes a name in the metadata for a credential, and their stubs.

The check stands where the real ones stand. What follows it, the principals file and the roles, is the server's own.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from grpc import aio

from tests import harness
from turnkeeper.identity.credential import CallContext, Credential, CredentialKind, Refusal, refused

NAME: Final = "test-credential"
"""The metadata with the caller's name."""


class NamedCredentials:
    """Takes the metadata NAME for the SPIFFE id of a checked certificate."""

    def __init__(self) -> None:
        self.expiries: dict[str, float] = {}
        """By name, in seconds since the epoch."""

    async def credential(self, context: CallContext) -> Credential:
        """Returns the named credential. Raises Unauthenticated without a name."""
        names = [value for key, value in context.invocation_metadata() or () if key == NAME]
        if not names:
            raise refused(Refusal.MISSING)
        return Credential(CredentialKind.CERTIFICATE, names[0], expires_at=self.expiries.get(names[0]))


class _Calls:
    """A stub whose calls all carry some metadata."""

    def __init__(self, stub: Any, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = stub
        self._metadata = tuple(metadata)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)

        def call(request: Any, *, metadata: Sequence[tuple[str, str]] = (), **options: Any) -> Any:
            return method(request, metadata=(*self._metadata, *metadata), **options)

        return call


def stubs_as(channel: aio.Channel, name: str, **metadata: str) -> Any:
    """Returns the stubs of a caller with this credential. `metadata`: more of it, with `_` for `-`."""
    more = [(key.replace("_", "-"), value) for key, value in metadata.items()]
    stubs = harness.Stubs(channel)
    for service in ("sessions", "chat", "approvals", "agents", "audit"):
        setattr(stubs, service, _Calls(getattr(stubs, service), [(NAME, name), *more]))
    return stubs


@contextlib.asynccontextmanager
async def connect_as(address: str, name: str, **metadata: str) -> AsyncIterator[Any]:
    """Opens a channel, and yields the stubs of a caller with this credential."""
    async with aio.insecure_channel(address) as channel:
        yield stubs_as(channel, name, **metadata)


def row(name: str, *, tenant: str, roles: Sequence[str] = ("caller",), groups: Sequence[str] = ()) -> str:
    """Returns the row of a principal whose credential has the name TENANT/NAME."""
    values: Mapping[str, object] = {
        "name": name,
        "tenant": tenant,
        "roles": list(roles),
        "groups": list(groups),
        "certificates": [f"{tenant}/{name}"],
    }
    return "\n".join(("[[principal]]", *(f"{key} = {value!r}" for key, value in values.items()), ""))
