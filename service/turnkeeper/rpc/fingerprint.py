"""Fingerprints: two requests with one fingerprint are the same request."""

import hashlib
from collections.abc import Collection

from google.protobuf.message import Message


def fingerprint(request: Message, *, leaving_out: Collection[str]) -> str:
    """Returns the SHA-256 (hex) of the request without the fields `leaving_out`, which do not change its effect."""
    same = type(request)()
    same.CopyFrom(request)
    for field in leaving_out:
        same.ClearField(field)
    content = same.SerializeToString(deterministic=True)
    return hashlib.sha256(request.DESCRIPTOR.name.encode() + b"\0" + content).hexdigest()
