"""Identifiers: lower-case ULIDs (48 bits of milliseconds, 80 random bits, Crockford's base 32)."""

import hashlib
from collections.abc import Callable

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = tuple(first + second for first in ALPHABET for second in ALPHABET)


def encode(number: int) -> str:
    """26 characters for 128 bits; the order of the texts is that of the numbers."""
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])


def ulid(*, milliseconds: int, random_bits: int) -> str:
    return encode((milliseconds << 80) | (random_bits & ((1 << 80) - 1)))


def source(clock: Callable[[], float], random_bits: Callable[[int], int]) -> Callable[[], str]:
    """A function that makes ids. `clock` gives seconds since 1970; `random_bits(n)` gives n random bits."""

    def new_id() -> str:
        return ulid(milliseconds=int(clock() * 1000), random_bits=random_bits(80))

    return new_id


def derived(*parts: str) -> str:
    """The same id from the same parts, on any replica: so the key itself finds a repeat."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return encode(int.from_bytes(digest[:16]) & ((1 << 128) - 1))
