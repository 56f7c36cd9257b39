"""Signs seals, and checks their signatures, by Ed25519 keys in PEM files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from turnkeeper.domain.audit import Seal
from turnkeeper.key_files import UnfitKey, content_of, private_key


class Signer:
    """Signs seals by a private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._id = key_id(key.public_key())

    @classmethod
    def from_file(cls, path: Path) -> "Signer":
        """Returns the signer of the file's key. Raises UnfitKey."""
        return cls(private_key(path, example="audit.pem"))

    def sign(self, seal: Seal) -> Seal:
        """Returns the seal with its signature."""
        return replace(seal, signature=self._key.sign(bytes.fromhex(seal.hash)).hex(), key_id=self._id)


class PublicKeys:
    """Checks signatures by public keys: several, if the key was replaced in the course of time."""

    def __init__(self, keys: Sequence[Ed25519PublicKey] = ()) -> None:
        self._keys: Mapping[str, Ed25519PublicKey] = {key_id(key): key for key in keys}

    @classmethod
    def from_files(cls, paths: Sequence[Path]) -> "PublicKeys":
        """Returns the keys of the files. Raises UnfitKey."""
        return cls([_public_key(path) for path in paths])

    def __bool__(self) -> bool:
        """Returns True if there is a key."""
        return bool(self._keys)

    def problem_of(self, seal: Seal) -> str:
        """Returns why the seal's signature is not by one of the keys; empty if it is."""
        if not seal.signature:
            return "it has no signature"
        key = self._keys.get(seal.key_id)
        if key is None:
            return "its signature is by a key that is not among the given ones"
        try:
            key.verify(bytes.fromhex(seal.signature), bytes.fromhex(seal.hash))
        except (InvalidSignature, ValueError):
            return "its signature is not by the key that it names"
        return ""


def key_id(key: Ed25519PublicKey) -> str:
    """Returns the SHA-256 of the public key, in hexadecimal."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def _public_key(path: Path) -> Ed25519PublicKey:
    content = content_of(path)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise UnfitKey(f"{path} is not a public key in PEM: make one with openssl pkey -in KEY -pubout") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UnfitKey(f"{path} is not an Ed25519 key")
    return key
