"""Computes the fingerprint of a request. Two requests with the same fingerprint have the same effect."""

import hashlib
from collections.abc import Collection

from google.protobuf.message import Message


def fingerprint(request: Message, *, leaving_out: Collection[str]) -> str:
    """Returns the SHA-256 (hexadecimal) of the request without the fields that do not change its effect."""
    compared = type(request)()
    compared.CopyFrom(request)
    for field in leaving_out:
        compared.ClearField(field)
    content = compared.SerializeToString(deterministic=True)
    return hashlib.sha256(request.DESCRIPTOR.name.encode() + b"\0" + content).hexdigest()
