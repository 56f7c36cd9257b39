"""Verifies the tokens of Turnkeeper's calls by the keys that it publishes."""

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import jwt

from turnkeeper_client.pb.tools.v1 import tool_pb2

ISSUER: Final = "turnkeeper"
KEEP_KEYS: Final = 300
"""Seconds for which the keys are kept. A token by another key has them fetched anew."""


class BadToken(Exception):
    """A call without a token that is valid for it."""


class TokenCheck:
    """Checks the tokens of one server's calls."""

    def __init__(self, audience: str, key_set: str, *, leeway: float = 5.0) -> None:
        """`audience`: the server's name in Turnkeeper's catalogue. `key_set`: the URL of the keys."""
        self._audience, self._leeway = audience, leeway
        self._keys = jwt.PyJWKClient(key_set, lifespan=KEEP_KEYS, timeout=5)

    async def claims(self, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the claims of the call's token. Raises BadToken."""
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        if scheme != "Bearer":
            raise BadToken("the call has no token")
        return await asyncio.to_thread(self._checked, token)

    def _checked(self, token: str) -> Mapping[str, Any]:
        try:
            key = self._keys.get_signing_key_from_jwt(token)
            needed = {"require": ["exp", "iat", "aud", "iss"]}
            return dict(
                jwt.decode(
                    token,
                    key,
                    algorithms=["EdDSA"],
                    audience=self._audience,
                    issuer=ISSUER,
                    leeway=self._leeway,
                    options=needed,  # type: ignore[arg-type]
                )
            )
        except (jwt.PyJWTError, ValueError) as error:  # a key set that is no JSON is a ValueError
            raise BadToken(f"the token is not valid: {error}") from None


def check_call(claims: Mapping[str, Any], request: "tool_pb2.CallToolRequest | tool_pb2.ReconcileRequest") -> None:
    """Raises BadToken if the token is that of another call."""
    expected = {"key": request.idempotency_key, "attempt": request.attempt, "tool": request.name}
    if isinstance(request, tool_pb2.CallToolRequest):
        expected["arguments_sha256"] = hashlib.sha256(request.arguments_json.encode()).hexdigest()
    for name, value in expected.items():
        if claims.get(name) != value:
            raise BadToken(f"the token is for another {name}")
