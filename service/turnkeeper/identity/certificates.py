"""Identity `mtls`: the certificate that the peer proved in the connection's handshake."""

import time
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography import x509

from turnkeeper.identity.credential import CallContext, Credential, CredentialKind, Refusal, refused
from turnkeeper.peer_list import SPIFFE

_PEM: Final = "x509_pem_cert"
_UNREADABLE: Final = (
    ValueError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for a certificate that the handshake takes: some names and extensions it does not know."""


class _Named(NamedTuple):
    """What a certificate names."""

    id: str
    """Empty if it names nothing, or more than one thing."""
    expires_at: float


class Certificates:
    """Names the peer by its certificate: its SPIFFE id, or else its subject. The handshake has checked the chain."""

    async def credential(self, context: CallContext) -> Credential:
        """Returns the peer's credential. Raises Unauthenticated: MISSING, MALFORMED or EXPIRED."""
        return peer_credential(context)


def peer_credential(context: CallContext) -> Credential:
    """Returns the credential of the peer's certificate. Raises Unauthenticated: MISSING, MALFORMED or EXPIRED.

    The handshake checks the validity once; a connection may be older than its certificate's end.
    """
    pem = next(iter(context.auth_context().get(_PEM, ())), b"")
    if not pem:
        raise refused(Refusal.MISSING)
    named = _named(pem)
    if not named.id:
        raise refused(Refusal.MALFORMED)
    if time.time() >= named.expires_at:
        raise refused(Refusal.EXPIRED)
    return Credential(CredentialKind.CERTIFICATE, named.id, expires_at=named.expires_at)


@lru_cache(maxsize=1024)
def _named(pem: bytes) -> _Named:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        uris = _uris(certificate)
        subject = certificate.subject.rfc4514_string()
    except _UNREADABLE:
        return _Named("", 0)
    expires_at = certificate.not_valid_after_utc.timestamp()
    if any(uri.startswith(SPIFFE) for uri in uris):
        return _Named(uris[0] if len(uris) == 1 else "", expires_at)
    return _Named(subject, expires_at)


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
