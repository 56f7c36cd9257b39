"""Callers with an identity: tokens of an issuer of the tests', and stubs whose calls carry them."""

import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from grpc import aio

from tests import harness
from tests.calls import Issuer, bearer
from tests.metadata_channel import MetadataChannel
from turnkeeper.dev_credentials import AUDIENCE, ISSUER
from turnkeeper.identity.credential import CallContext, Credential, CredentialKind, Refusal, refused

NAME: Final = "test-credential"
"""The metadata with the caller's name, for NamedCredentials."""
SIGNER: Final = Issuer()


def settings_of(folder: Path, *rows: str) -> dict[str, Any]:
    """Writes the principals file with these rows and the issuer's keys. Returns the settings of a server for tokens."""
    (folder / "principals.toml").write_text("".join(rows))
    (folder / "keys.json").write_text(json.dumps({"keys": [SIGNER.jwk()]}))
    return {
        "identity": "jwt",
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "jwt_keys": str(folder / "keys.json"),
        "principals": folder / "principals.toml",
    }


class NamedCredentials:
    """A check whose credentials end as a test needs it: takes the metadata NAME for the SPIFFE id of a certificate.

    It stands where the real checks stand; tokens cannot end within a minute, because clocks may differ by as much.
    """

    def __init__(self) -> None:
        self.expiries: dict[str, float] = {}
        """By name, in seconds since the epoch."""

    async def credential(self, context: CallContext) -> Credential:
        """Returns the named credential. Raises Unauthenticated without a name."""
        names = [value for key, value in context.invocation_metadata() or () if key == NAME]
        if not names:
            raise refused(Refusal.MISSING)
        return Credential(CredentialKind.CERTIFICATE, names[0], expires_at=self.expiries.get(names[0]))


def token_of(name: str) -> str:
    """Returns a token whose subject is this name, for as long as any test takes."""
    return SIGNER.token(sub=name, exp=int(time.time()) + 7200)


def stubs_as(channel: aio.Channel, name: str, **metadata: str) -> harness.Stubs:
    """Returns the stubs of a caller with a token of this subject. `metadata`: more of it, with `_` for `-`.

    The metadata NAME has the same name, for a server with NamedCredentials.
    """
    more = [(key.replace("_", "-"), value) for key, value in metadata.items()]
    return harness.Stubs(MetadataChannel(channel, [*bearer(token_of(name)), (NAME, name), *more]))


@contextlib.asynccontextmanager
async def connect_as(address: str, name: str, **metadata: str) -> AsyncIterator[harness.Stubs]:
    """Opens a channel, and yields the stubs of a caller with this credential."""
    async with aio.insecure_channel(address) as channel:
        yield stubs_as(channel, name, **metadata)


def row(name: str, *, tenant: str, roles: Sequence[str] = ("caller",), groups: Sequence[str] = ()) -> str:
    """Returns the row of a principal whose credentials have the name TENANT/NAME."""
    values: Mapping[str, object] = {
        "name": name,
        "tenant": tenant,
        "roles": list(roles),
        "groups": list(groups),
        "certificates": [f"{tenant}/{name}"],
    }
    token = f'tokens = [{{ issuer = "{ISSUER}", subject = "{tenant}/{name}" }}]'
    return "\n".join(("[[principal]]", *(f"{key} = {value!r}" for key, value in values.items()), token, ""))
