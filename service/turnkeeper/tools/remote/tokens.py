"""Signs the tokens that calls of a tool's server carry, and publishes the keys that verify them."""

import hashlib
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from turnkeeper.key_files import private_key
from turnkeeper.tools.contract import ToolContext

ISSUER: Final = "turnkeeper"
"""`iss` of every token."""
VALID_FOR: Final = 60
"""Seconds that a token is valid."""


class CallTokens:
    """Signs by the first of its keys. All of them are published, so that a key can be replaced without a gap.

    All replicas read the same keys: a server trusts each of them by the set that any one of them publishes.
    """

    def __init__(self, keys: Sequence[Ed25519PrivateKey] = (), *, clock: Callable[[], float] = time.time) -> None:
        """Without keys it makes one, which only this process knows."""
        keys = keys or (Ed25519PrivateKey.generate(),)
        self._key, self._id = keys[0], key_id(keys[0].public_key())
        self._public = [key.public_key() for key in keys]
        self._clock = clock

    @classmethod
    def from_files(cls, paths: Sequence[Path]) -> "CallTokens":
        """Returns the tokens of the files' keys. Raises UnfitKey."""
        return cls([private_key(path, example="tools.pem") for path in paths])

    def key_set(self) -> Sequence[Mapping[str, str]]:
        """Returns the public keys as the members of a JWK set (RFC 7517, RFC 8037)."""
        return [
            {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": key_id(key), "x": _raw(key)}
            for key in self._public
        ]

    def of_listing(self, audience: str) -> str:
        """Returns the token of a request that belongs to no call."""
        return self._signed({"aud": audience})

    def of_call(self, audience: str, tool: str, context: ToolContext) -> str:
        """Returns the token of a call, or of the request what became of it. `tool` is its name at the server."""
        claims = {
            "aud": audience,
            "sub": context.on_behalf_of or context.principal,
            "tool": tool,
            "tenant": context.tenant,
            "principal": context.principal,
            "on_behalf_of": context.on_behalf_of,
            "session": context.session_id,
            "call": context.tool_call_id,
            "key": context.key,
            "attempt": context.attempt,
            "arguments_sha256": hashlib.sha256(context.arguments_json.encode()).hexdigest(),
            "approval": context.approval_id,
        }
        return self._signed(claims)

    def _signed(self, claims: dict[str, Any]) -> str:
        now = int(self._clock())
        claims |= {"iss": ISSUER, "iat": now, "exp": now + VALID_FOR}
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self._id})


def key_id(key: Ed25519PublicKey) -> str:
    """Returns the key's thumbprint (RFC 7638)."""
    members = f'{{"crv":"Ed25519","kty":"OKP","x":"{_raw(key)}"}}'
    return _base64(hashlib.sha256(members.encode()).digest())


def _raw(key: Ed25519PublicKey) -> str:
    return _base64(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def _base64(value: bytes) -> str:
    return urlsafe_b64encode(value).rstrip(b"=").decode()
