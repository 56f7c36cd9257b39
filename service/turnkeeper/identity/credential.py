"""Credentials: the content of a checked certificate or token, and the check as a Protocol."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from turnkeeper.errors import Unauthenticated


class CredentialKind(StrEnum):
    """What kind of credential a call carried."""

    NONE = "NONE"
    CERTIFICATE = "CERTIFICATE"
    TOKEN = "TOKEN"  # noqa: S105 - the kind, not a token


class Refusal(StrEnum):
    """Why a credential is refused. It is all that a caller gets to know: metadata `reason` of UNAUTHENTICATED."""

    MISSING = "MISSING"
    """The call carries none."""
    SEVERAL = "SEVERAL"
    """The call carries more than one."""
    MALFORMED = "MALFORMED"
    """It cannot be read, is too long, or lacks a claim that is required."""
    WRONG_ALGORITHM = "WRONG_ALGORITHM"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    """No key of the issuer has its key id."""
    BAD_SIGNATURE = "BAD_SIGNATURE"
    WRONG_ISSUER = "WRONG_ISSUER"
    WRONG_AUDIENCE = "WRONG_AUDIENCE"
    EXPIRED = "EXPIRED"
    NOT_YET_VALID = "NOT_YET_VALID"
    REVOKED = "REVOKED"
    """Of a stream: the principals file no longer allows what it was opened with."""
    UNLISTED_PEER = "UNLISTED_PEER"
    """The peer is not one that may carry the credentials of others."""


def refused(reason: Refusal) -> Unauthenticated:
    """Returns the error of a call whose credential is refused."""
    return Unauthenticated(metadata={"reason": reason.value})


@dataclass(frozen=True, slots=True)
class Credential:
    """The content of a checked credential. The principals file maps it to a principal.

    Raises Unauthenticated with MALFORMED for an id that cannot be logged and stored as it is, such as a line break.
    """

    kind: CredentialKind
    id: str
    """Of a certificate its SPIFFE id, or else its subject; of a token the issuer and the subject. Not a secret."""
    claims: Mapping[str, object] = field(default_factory=dict)
    """Of a token: its claims, `iss` and `sub` among them. Of a certificate: none."""
    expires_at: float | None = None
    """Seconds since the epoch, the skew that is allowed included; None if it does not expire."""

    def __post_init__(self) -> None:
        """Checks the id: the owner of a certificate or a token may have chosen a part of it."""
        if not self.id.isprintable():
            raise refused(Refusal.MALFORMED)


NO_CREDENTIAL: Final = Credential(CredentialKind.NONE, "")
"""The credential of every call with identity `none`."""


class CallContext(Protocol):
    """What a check reads of a call: gRPC's ServicerContext has these methods."""

    def invocation_metadata(self) -> Any:
        """Returns the metadata that the caller sent: pairs of a key in lower case and its value; or None."""
        ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Returns what the connection's handshake proved of the peer; empty without TLS."""
        ...

    def peer(self) -> str:
        """Returns the address of the connection's other end."""
        ...


class Authenticator(Protocol):
    """Checks the credential of a call."""

    async def credential(self, context: CallContext) -> Credential:
        """Returns the checked credential. Raises Unauthenticated, made by `refused`, if there is no valid one."""
        ...


class Anyone:
    """Identity `none`: every call is accepted without a credential."""

    async def credential(self, context: CallContext) -> Credential:  # noqa: ARG002 - it looks at nothing
        """Returns NO_CREDENTIAL."""
        return NO_CREDENTIAL
