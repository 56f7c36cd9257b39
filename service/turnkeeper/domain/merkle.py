"""Hash trees of RFC 6962, section 2.1: the root of a list of entries, and the proof that one entry is among them."""

import hashlib
from collections.abc import Sequence

EMPTY = hashlib.sha256().digest()
"""The root of no entries."""
LONGEST = 64
"""Hashes of a proof, at most: more than any list has that can be stored."""


def leaf_hash(entry: bytes) -> bytes:
    """Returns the hash of an entry. Its prefix keeps an entry from passing as an inner node."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Returns the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """Returns the root over the hashes of the entries, in their order."""
    if len(leaves) < 2:
        return leaves[0] if leaves else EMPTY
    split = _split(len(leaves))
    return node_hash(root(leaves[:split]), root(leaves[split:]))


def path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Returns the proof that the leaf at `index` is under the root: the hashes of its siblings, the lowest first."""
    if len(leaves) < 2:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*path(leaves[:split], index), root(leaves[split:])]
    return [*path(leaves[split:], index - split), root(leaves[:split])]


def root_of_path(leaf: bytes, siblings: Sequence[bytes], *, index: int, count: int) -> bytes:
    """Returns the root that a proof leads to. Raises ValueError if no list of `count` entries has such a proof."""
    if len(siblings) > LONGEST:
        raise ValueError("the proof is too long")
    if not 0 <= index < count:
        raise ValueError("the index is outside of the list")
    if count == 1:
        if siblings:
            raise ValueError("the proof is too long")
        return leaf
    if not siblings:
        raise ValueError("the proof is too short")
    split = _split(count)
    *lower, sibling = siblings
    if index < split:
        return node_hash(root_of_path(leaf, lower, index=index, count=split), sibling)
    return node_hash(sibling, root_of_path(leaf, lower, index=index - split, count=count - split))


def _split(count: int) -> int:
    """Returns the largest power of two that is smaller than `count`."""
    return 1 << ((count - 1).bit_length() - 1)
