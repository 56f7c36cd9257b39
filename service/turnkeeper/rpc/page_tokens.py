"""Page tokens: signed, and good for one list with the same filters only."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from google.protobuf.message import Message

from turnkeeper.errors import PageTokenInvalid

DEFAULT_SIZE = 50
MOST = 100
MOST_BYTES = 1 << 20
"""Of one page: a response may have 4 MiB, and most proxies want less."""
SIGNATURE = 16
T = TypeVar("T")
M = TypeVar("M", bound=Message)

PageKey = tuple[str | int, ...]


class PageTokens:
    """Makes and reads page tokens with a key that all replicas share."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def size(self, asked: int) -> int:
        return min(asked, MOST) if asked > 0 else DEFAULT_SIZE

    def after(self, request: Message, *, tenant: str) -> PageKey | None:
        """Where the page starts, None at the beginning. Raises PageTokenInvalid."""
        token: str = getattr(request, "page_token", "")
        if not token:
            return None
        try:
            data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            body, signature = data[:-SIGNATURE], data[-SIGNATURE:]
            if not hmac.compare_digest(signature, self._sign(body, request, tenant)):
                raise PageTokenInvalid
            return tuple(json.loads(body))
        except ValueError as error:
            raise PageTokenInvalid from error

    def split(
        self,
        found: Sequence[T],
        request: Message,
        *,
        tenant: str,
        size: int,
        place: Callable[[T], PageKey],
        view: Callable[[T], M],
    ) -> tuple[Sequence[M], str]:
        """The page as callers see it, and the token of the next one.

        `found` has one more than `size` when there is a next one; a page also ends before it is too large to send.
        """
        page = fitting([view(item) for item in found[:size]], bytes_of=lambda item: item.ByteSize())
        if len(page) == len(found):
            return page, ""
        body = json.dumps(place(found[len(page) - 1]), separators=(",", ":")).encode()
        token = base64.urlsafe_b64encode(body + self._sign(body, request, tenant)).decode().rstrip("=")
        return page, token

    def _sign(self, body: bytes, request: Message, tenant: str) -> bytes:
        same = type(request)()
        same.CopyFrom(request)
        for field in ("page_token", "page_size"):
            same.ClearField(field)
        about = b"\0".join(
            (request.DESCRIPTOR.full_name.encode(), tenant.encode(), same.SerializeToString(deterministic=True), body)
        )
        return hmac.new(self._key, about, hashlib.sha256).digest()[:SIGNATURE]


def fitting(items: Sequence[T], *, bytes_of: Callable[[T], int]) -> Sequence[T]:
    """As many of the first items as MOST_BYTES hold, but one at least."""
    room = MOST_BYTES
    for number, item in enumerate(items):
        room -= bytes_of(item)
        if room < 0 and number:
            return items[:number]
    return items


def by_time(place: PageKey | None) -> tuple[datetime, str] | None:
    """A (create_time, id) place; times are in milliseconds."""
    if place is None:
        return None
    milliseconds, name = place
    return datetime.fromtimestamp(int(milliseconds) / 1000, tz=UTC), str(name)


def of_time(at: datetime, name: str) -> PageKey:
    return (round(at.timestamp() * 1000), name)
