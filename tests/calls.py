"""A call as the checks of credentials see it, and credentials to make it with."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from turnkeeper.dev_credentials import AUDIENCE, ISSUER, KEY_ID, Authority, public_jwk, spiffe_id

DAY = timedelta(days=1)


@dataclass(slots=True)
class Call:
    """What a check reads of a call."""

    metadata: Sequence[tuple[str, Any]] = ()
    certificate: bytes = b""
    address: str = "ipv4:127.0.0.1:40000"

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]:
        return self.metadata

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {"x509_pem_cert": [self.certificate]} if self.certificate else {}

    def peer(self) -> str:
        return self.address


@dataclass(slots=True)
class Issuer:
    """Signs tokens."""

    key_id: str = KEY_ID
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def jwk(self) -> dict[str, Any]:
        return public_jwk(self.key, self.key_id)

    def claims(self, **changed: object) -> dict[str, Any]:
        """Returns the claims of a good token, with these changes; None leaves a claim out."""
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 600, **changed}
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self, *, algorithm: str = "ES256", key: Any = None, header: Mapping[str, Any] | None = None, **changed: object
    ) -> str:
        headers = {"kid": self.key_id, **(header or {})}
        return jwt.encode(self.claims(**changed), key or self.key, algorithm=algorithm, headers=headers)


def bearer(*tokens: str) -> list[tuple[str, str]]:
    """Returns the metadata that carries these tokens."""
    return [("authorization", f"Bearer {token}") for token in tokens]


def certificate(
    authority: Authority, name: str, *, lifetime: timedelta = DAY, uris: Sequence[str] | None = None
) -> tuple[bytes, bytes]:
    """Returns a certificate and its key. `uris`: those in it, the SPIFFE id of the name if None."""
    named = [spiffe_id(name)] if uris is None else uris
    return authority.issued(name, names=[x509.UniformResourceIdentifier(uri) for uri in named], lifetime=lifetime)
