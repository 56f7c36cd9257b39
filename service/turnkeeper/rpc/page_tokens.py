"""Page tokens: signed, and valid for one list with one set of filters.

A token holds the key of the last item on its page. The next page begins after that key, whatever was added meanwhile.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from google.protobuf.message import Message

from turnkeeper.errors import PageTokenInvalid
from turnkeeper.event_loop import Slices
from turnkeeper.identity.caller import DEFAULT_CALLER, Caller

DEFAULT_SIZE = 50
"""Items of a page if the request asks for no number."""
MAX_SIZE = 100
"""Items of a page, whatever the request asks for."""
MAX_BYTES = 1 << 20
"""Bytes of a page: a response may have 4 MiB, and most proxies are configured for less."""
SIGNATURE_BYTES = 16
"""Bytes of a token's signature: the first of an HMAC with SHA-256."""
T = TypeVar("T")
M = TypeVar("M", bound=Message)

PageKey = tuple[str | int, ...]
"""What a list is sorted by, of one item: for example its time in ms and its id."""


class PageTokens:
    """Makes and reads page tokens with a secret that all replicas share."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def size(self, requested: int) -> int:
        """Returns how many items a page may have: MAX_SIZE at most, or DEFAULT_SIZE if the request gives no number."""
        return min(requested, MAX_SIZE) if requested > 0 else DEFAULT_SIZE

    def after(self, request: Message, *, caller: Caller) -> PageKey | None:
        """Returns the key after which the page begins, or None for the first page.

        Raises PageTokenInvalid if the token was not made for this list with these filters and this caller.
        """
        token: str = getattr(request, "page_token", "")
        if not token:
            return None
        try:
            data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            body, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
            if not hmac.compare_digest(signature, self._sign(body, request, caller)):
                raise PageTokenInvalid
            return tuple(json.loads(body))
        except ValueError as error:
            raise PageTokenInvalid from error

    async def page(
        self,
        items: Sequence[T],
        request: Message,
        *,
        caller: Caller,
        size: int,
        key_of: Callable[[T], PageKey],
        view: Callable[[T], M],
    ) -> tuple[Sequence[M], str]:
        """Returns the page as callers see it, and the token of the next page, empty if this is the last one.

        `items` were read with a limit of `size` + 1, so that one too many means that there is a next page. A page also
        ends before it has more than MAX_BYTES.
        """
        page, slices, room = list[M](), Slices(), MAX_BYTES
        for item in items[:size]:
            shown = view(item)
            room -= shown.ByteSize()
            if room < 0 and page:
                break
            page.append(shown)
            await slices.step()
        if len(page) == len(items):
            return page, ""
        body = json.dumps(key_of(items[len(page) - 1]), separators=(",", ":")).encode()
        token = base64.urlsafe_b64encode(body + self._sign(body, request, caller)).decode().rstrip("=")
        return page, token

    def _sign(self, body: bytes, request: Message, caller: Caller) -> bytes:
        """Signs the key together with the list, its filters and the caller; the page's size may change.

        Replicas of older versions sign no principal. Theirs is always that of DEFAULT_CALLER.
        """
        principal = "" if caller.principal == DEFAULT_CALLER.principal else f"\1{caller.principal}"
        filters = type(request)()
        filters.CopyFrom(request)
        for field in ("page_token", "page_size"):
            filters.ClearField(field)
        signed = b"\0".join(
            (
                request.DESCRIPTOR.full_name.encode(),
                f"{caller.tenant}{principal}".encode(),
                filters.SerializeToString(deterministic=True),
                body,
            )
        )
        return hmac.new(self._secret, signed, hashlib.sha256).digest()[:SIGNATURE_BYTES]


def fitting(items: Sequence[T], *, bytes_of: Callable[[T], int]) -> Sequence[T]:
    """Returns as many of the first items as fit in MAX_BYTES, but at least one."""
    room = MAX_BYTES
    for number, item in enumerate(items):
        room -= bytes_of(item)
        if room < 0 and number:
            return items[:number]
    return items


def key_of_time(at: datetime, item_id: str) -> PageKey:
    """Returns the key of an item in a list by time: the time in whole ms, as the store keeps it, and the item's id."""
    return (round(at.timestamp() * 1000), item_id)


def time_of_key(key: PageKey | None) -> tuple[datetime, str] | None:
    """Returns the time and the id of `key_of_time`, or None if there is no key."""
    if key is None:
        return None
    milliseconds, item_id = key
    return datetime.fromtimestamp(int(milliseconds) / 1000, tz=UTC), str(item_id)
