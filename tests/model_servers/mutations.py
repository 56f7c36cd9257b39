"""Breaks the bytes of a stream, in ways that are chosen by a hypothesis or by a seed."""

from collections.abc import Sequence
from random import Random
from string import ascii_letters

KINDS = ("delete", "insert", "replace", "repeat", "swap")
LONGEST = 60
"""Bytes that are deleted, repeated or moved at once, at most."""
EDGES = (
    b"\n",
    b"\r",
    b"\n\n",
    b"data: ",
    b"data",
    b":",
    b"{",
    b"}",
    b'"',
    b"\\",
    b",",
    b"0",
    b"[DONE]",
    b"\x00",
    b"\xf0\x9f",
)


def mutated(body: bytes, mutations: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    """Returns the body with some of its bytes lost, added, replaced, repeated or moved."""
    for kind, position, size, edge in mutations:
        at = position % (len(body) + 1)
        part = body[at : at + size]
        match kind:
            case "delete":
                body = body[:at] + body[at + size :]
            case "insert":
                body = body[:at] + edge + body[at:]
            case "replace":
                body = body[:at] + edge + body[at + len(edge) :]
            case "repeat":
                body = body[:at] + part + body[at:]
            case _:
                body = body[:at] + body[at + size : at + 2 * size] + part + body[at + 2 * size :]
    return body


def mutated_by_seed(body: bytes, seed: int) -> bytes:
    """Returns the body with some mutations, the same for the same seed.

    An even seed only changes letters and digits: most of these answers still count, with other words.
    """
    random = Random(seed)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(body) + 1)
        if seed % 2:
            mutation = (random.choice(KINDS), at, random.randint(1, LONGEST), random.choice(EDGES))
            body = mutated(body, [mutation])
        elif body[at : at + 1].isalnum():
            body = body[:at] + random.choice(ascii_letters).encode() + body[at + 1 :]
    return body
