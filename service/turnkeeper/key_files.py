"""Reads private Ed25519 keys from PEM files: of the audit trail, and of the tokens of tool calls."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from turnkeeper.start_errors import SettingError


class UnfitKey(SettingError):
    """The file holds no key that can be used. The message names the file and what to do; it quotes nothing of it."""


def private_key(path: Path, *, example: str) -> Ed25519PrivateKey:
    """Returns the file's key. `example`: a file's name, for the message how to make one. Raises UnfitKey."""
    make = f"make one with openssl genpkey -algorithm ed25519 -out {example}"
    try:
        key = load_pem_private_key(content_of(path), password=None)
    except TypeError:
        raise UnfitKey(f"{path} is encrypted: give a key without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UnfitKey(f"{path} is not a private key in PEM: {make}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UnfitKey(f"{path} is not an Ed25519 key: {make}")
    return key


def content_of(path: Path) -> bytes:
    """Returns what the file holds. Raises UnfitKey if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnfitKey(f"{path} cannot be read: {error.strerror}") from None
