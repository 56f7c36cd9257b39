"""Identity `jwt`: a token in the metadata `authorization`, signed by a key of one issuer."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jwt

from turnkeeper.identity.checked_tokens import CheckedTokens
from turnkeeper.identity.credential import CallContext, Credential, CredentialKind, Refusal, refused
from turnkeeper.identity.key_set import KeySet

MOST_BYTES: Final = 8 << 10
"""Bytes of a token, at most. A longer one is not even parsed."""
SKEW: Final = 60
"""Seconds by which the issuer's clock may differ from this server's."""
HEADER: Final = "authorization"
SCHEME: Final = "bearer"

_REASONS: Final[Sequence[tuple[type[Exception], Refusal]]] = (
    (jwt.ExpiredSignatureError, Refusal.EXPIRED),
    (jwt.ImmatureSignatureError, Refusal.NOT_YET_VALID),
    (jwt.InvalidAudienceError, Refusal.WRONG_AUDIENCE),
    (jwt.InvalidIssuerError, Refusal.WRONG_ISSUER),
    (jwt.InvalidSignatureError, Refusal.BAD_SIGNATURE),
    (jwt.InvalidAlgorithmError, Refusal.WRONG_ALGORITHM),
)
"""The library's errors; every other one is MALFORMED."""
_UNREADABLE: Final = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)


class Tokens:
    """Checks the token of each call. A token that passed is not checked again until it expires or the keys change."""

    def __init__(self, keys: KeySet, *, issuer: str, audience: str, algorithms: Sequence[str]) -> None:
        """`algorithms` are the only ones that a token may be signed with."""
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._algorithms = frozenset(algorithms)
        self._checked = CheckedTokens()

    async def credential(self, context: CallContext) -> Credential:
        """Returns the credential of the call's token.

        Raises Unauthenticated, or ServiceUnavailable while the issuer's keys cannot be fetched.
        """
        token = token_of(context)
        version = self._keys.version
        if (checked := self._checked.get(token, version=version)) is not None:
            return checked
        credential = await self._check(token)
        self._checked.put(token, credential, version=self._keys.version)
        return credential

    async def _check(self, token: str) -> Credential:
        try:
            header = jwt.get_unverified_header(token)
        except _UNREADABLE:
            raise refused(Refusal.MALFORMED) from None
        algorithm, key_id = header.get("alg"), header.get("kid", "")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise refused(Refusal.WRONG_ALGORITHM)
        key = await self._keys.key(key_id, algorithm)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=SKEW,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except _UNREADABLE as error:
            raise refused(_reason(error)) from None
        return _credential(claims)


def token_of(context: CallContext) -> str:
    """Returns the token in the call's metadata. Raises Unauthenticated: MISSING, SEVERAL or MALFORMED."""
    values = [value for name, value in context.invocation_metadata() or () if name == HEADER]
    if not values:
        raise refused(Refusal.MISSING)
    if len(values) > 1:
        raise refused(Refusal.SEVERAL)
    scheme, _, token = str(values[0]).partition(" ")
    if scheme.lower() != SCHEME or not token or len(token) > MOST_BYTES or not token.isascii():
        raise refused(Refusal.MALFORMED)
    return token


def _reason(error: Exception) -> Refusal:
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), Refusal.MALFORMED)


def _credential(claims: Mapping[str, Any]) -> Credential:
    return Credential(
        CredentialKind.TOKEN,
        f"{claims['iss']} {claims['sub']}",
        claims=claims,
        expires_at=int(claims["exp"]) + SKEW,
    )
