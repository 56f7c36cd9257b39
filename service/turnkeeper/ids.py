"""Makes identifiers: lower-case ULIDs (48 bits of milliseconds, 80 random bits, Crockford's base 32)."""

import hashlib
import secrets
from collections.abc import Callable
from typing import Final

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
FETCHED_BYTES: Final = 640
"""Random bytes of 64 ids."""
_PAIRS = tuple(first + second for first in ALPHABET for second in ALPHABET)


def encode(number: int) -> str:
    """Returns 26 characters for a number of at most 128 bits; the texts sort as the numbers do."""
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])


def ulid(*, milliseconds: int, random_bits: int) -> str:
    """Returns the id of a time (milliseconds since 1970) and 80 random bits."""
    return encode((milliseconds << 80) | (random_bits & ((1 << 80) - 1)))


def source(clock: Callable[[], float], random_bits: Callable[[int], int]) -> Callable[[], str]:
    """Returns a function that makes ids. `clock` returns seconds since 1970, `random_bits(n)` n random bits."""

    def new_id() -> str:
        return ulid(milliseconds=int(clock() * 1000), random_bits=random_bits(80))

    return new_id


class RandomBits:
    """Random bits of the machine, fetched for many ids at once: with each fetch the interpreter changes hands."""

    def __init__(self, fetch: Callable[[int], bytes] = secrets.token_bytes) -> None:
        """`fetch(n)` returns n random bytes."""
        self._fetch = fetch
        self._bytes = b""
        self._used = 0

    def __call__(self, bits: int) -> int:
        """Returns a random number of so many bits, none of which was in an earlier number."""
        start, size = self._used, (bits + 7) // 8
        if start + size > len(self._bytes):
            start, self._bytes = 0, self._fetch(max(size, FETCHED_BYTES))
        self._used = start + size
        return int.from_bytes(self._bytes[start : self._used]) & ((1 << bits) - 1)


def derived(*parts: str) -> str:
    """Returns the same id for the same parts on any replica, so that a unique key detects a repeat."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return encode(int.from_bytes(digest[:16]) & ((1 << 128) - 1))
