"""Cursors: a position in a session's stream as an opaque text, bound to session and tenant. Not a credential."""

import base64
import binascii
import hashlib
import struct
from functools import lru_cache

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import InvalidRequest

_FORM = struct.Struct(">BQIQB")
"""Version, sequence, attempt, offset, live; the message id and the history follow, then the checksum."""
_HISTORY = b"\0"
"""Stands before the history, behind the message id.

A replica of an older version takes both for the id of another message: it sends the text of the one that is being
written from its beginning, with `restarts`.
"""
VERSION = 1
"""The version of the form; a cursor with another one is refused."""
CHECK_BYTES = 8
"""Bytes of the checksum: a cursor of another session, or a mangled one, is noticed."""


def encode(position: StreamPosition, *, key: SessionKey) -> str:
    """Returns the cursor of a position in this session: at most 200 ASCII characters."""
    return encoded(position, key).decode()


def encoded(position: StreamPosition, key: SessionKey) -> bytes:
    """Returns the characters of `encode` as bytes: each response has one."""
    head = _FORM.pack(VERSION, position.sequence, position.attempt, position.offset, position.live)
    body = head + _tail(position.message_id, position.history)
    text = binascii.b2a_base64(body + _check(body, key), newline=False)
    return text.translate(_URL_SAFE).rstrip(b"=")


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


@lru_cache(maxsize=1024)
def _tail(message_id: str, history: str) -> bytes:
    """Returns the part of a cursor that stays the same while a message is written."""
    return message_id.encode() + (_HISTORY + history.encode() if history else b"")


def before(sequence: int, *, key: SessionKey) -> str:
    """Returns the cursor just before an event: a stream from it begins with the event."""
    return encode(StreamPosition(sequence=sequence - 1), key=key)


def decode(text: str, *, key: SessionKey, field: str = "after") -> StreamPosition:
    """Returns the position of a cursor.

    Raises InvalidRequest, naming `field`, for anything that `encode` did not make for this session.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        body, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
        version, sequence, attempt, offset, live = _FORM.unpack(body[: _FORM.size])
        message_id, _, history = body[_FORM.size :].decode().partition(_HISTORY.decode())
    except (ValueError, struct.error):
        raise _refused(field, key.session_id) from None
    if version != VERSION or check != _check(body, key):
        raise _refused(field, key.session_id)
    return StreamPosition(
        sequence=sequence,
        history=history,
        message_id=message_id,
        attempt=attempt,
        offset=offset,
        live=bool(live),
    )


def _refused(field: str, session_id: str) -> InvalidRequest:
    problem = "is not a cursor of this session; pass one from a response about it, or start without it"
    return InvalidRequest(f"{field} {problem}.", session_id=session_id, fields={field: problem})


def _check(body: bytes, key: SessionKey) -> bytes:
    """Returns the checksum of a cursor of this session."""
    digest = _begun(key).copy()
    digest.update(body)
    return digest.digest()


@lru_cache(maxsize=1024)
def _begun(key: SessionKey) -> hashlib.blake2b:
    """Returns the checksum as it is before a cursor's own bytes."""
    parts = (key.tenant.encode(), key.session_id.encode(), b"")
    return hashlib.blake2b(b"\0".join(parts), digest_size=CHECK_BYTES)
