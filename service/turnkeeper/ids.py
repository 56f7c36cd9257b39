"""Makes identifiers: lower-case ULIDs (48 bits of milliseconds, 80 random bits, Crockford's base 32)."""

import hashlib
from collections.abc import Callable

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
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


def derived(*parts: str) -> str:
    """Returns the same id for the same parts on any replica, so that a unique key detects a repeat."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return encode(int.from_bytes(digest[:16]) & ((1 << 128) - 1))
