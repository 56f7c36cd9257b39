"""Breaks the bytes of a stream, in ways that are chosen by a hypothesis or by a seed."""

from collections.abc import Sequence
from random import Random

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
    """Returns the body with one to four mutations, the same for the same seed."""
    random = Random(seed)
    return mutated(
        body,
        [
            (random.choice(KINDS), random.randrange(2**20), random.randint(1, LONGEST), random.choice(EDGES))
            for _ in range(random.randint(1, 4))
        ],
    )
