"""Tokens that were checked already: checking a signature costs more than the rest of a small call."""

import hashlib
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from turnkeeper.identity.credential import Credential

MOST_BYTES: Final = 4 << 20
"""Bytes of the tokens whose results are kept, at most: about 5,000 tokens of usual length."""


class _Checked(NamedTuple):
    credential: Credential
    version: int
    size: int


class CheckedTokens:
    """The credentials of tokens that passed, by the tokens' SHA-256. Beyond MOST_BYTES the oldest one is dropped."""

    def __init__(self, *, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.time) -> None:
        """`clock` returns seconds since the epoch."""
        self._most_bytes = most_bytes
        self._clock = clock
        self._checked: dict[bytes, _Checked] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """Returns how many are kept."""
        return len(self._checked)

    def get(self, token: str, *, version: int) -> Credential | None:
        """Returns the token's credential, or None: not checked yet, expired, or checked by keys of another version."""
        key = _hash(token)
        if (checked := self._checked.get(key)) is None:
            return None
        expires_at = checked.credential.expires_at
        if checked.version == version and (expires_at is None or self._clock() < expires_at):
            return checked.credential
        self._drop(key)
        return None

    def put(self, token: str, credential: Credential, *, version: int) -> None:
        """Keeps the credential of a token that was checked by keys of this version."""
        key = _hash(token)
        if key in self._checked:
            self._drop(key)
        self._checked[key] = _Checked(credential, version, len(token))
        self._bytes += len(token)
        while self._bytes > self._most_bytes:
            self._drop(next(iter(self._checked)))

    def _drop(self, key: bytes) -> None:
        self._bytes -= self._checked.pop(key).size


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
