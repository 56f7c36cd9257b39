"""The limits of what an MCP server may send, and the endings of requests that no server's message states.

The SDK limits events of a stream alone, neither lines nor JSON bodies. And it examines the entries of lists one by one:
40 µs for a bad one. So each message is measured here before the SDK reads it further.
"""

import re
import secrets
import time
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Final

from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from mcp_types import (
    INTERNAL_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
    jsonrpc_message_adapter,
)

MESSAGE_BYTES: Final = 1 << 20
"""Bytes of one message, at most. A result may have 64 KiB; images, which are not passed on, are larger."""
SKIPPED_BYTES: Final = 32 << 20
"""Bytes of one line after which the server is ended: it will not come to an end."""
MOST_PARTS: Final = 32_768
"""Values of one message, at most: it takes 40 ms to read them."""
MOST_ENTRIES: Final = 1_000
"""Entries of lists that the SDK examines one by one, at most: 40 ms."""
_FREE_FORM: Final = frozenset({"structuredContent", "inputSchema", "outputSchema", "_meta"})
"""Members of a result that the SDK does not examine further."""
_ENDS: Final = 256
"""Bytes that are kept of the beginning and the end of a line that is too long: one of them has the message's id."""
_ID_FIRST: Final = re.compile(rb'\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d{1,15})\s*,\s*"(?:result|error)"')
_ID_LAST: Final = re.compile(rb'"id"\s*:\s*(\d{1,15})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')
_MARK: Final = secrets.token_hex(16)
"""What marks an ending of ours: no server knows it."""


class Ending(StrEnum):
    """How a request ended that got no answer of its server's own."""

    NOT_SENT = "not sent"
    """It certainly did not reach the tool."""
    UNKNOWN = "unknown"
    """It was sent, and nothing tells what became of it."""
    SESSION_LOST = "session lost"
    """The server does not know the session any more, so it did not look at the request."""
    UNFIT = "unfit"
    """It was answered, with more than may be passed on."""


def error_of(ending: Ending, message: str) -> ErrorData:
    """Returns the ending as an error that the SDK passes on to the caller of the request."""
    return ErrorData(code=INTERNAL_ERROR, message=message, data={_MARK: ending.value})


def ending_of(error: MCPError) -> Ending | None:
    """Returns the ending that `error_of` made the error of; None for an error of the server's or of the SDK's."""
    data = error.error.data
    return Ending(data[_MARK]) if isinstance(data, dict) and _MARK in data else None


class Endless(Exception):
    """A line that has no end."""


class UnreadableLine:
    """A line that cannot be read as a message, or one that is too large."""

    def __init__(self, head: bytes, tail: bytes, size: int) -> None:
        self._head, self._tail, self._size = head, tail, size

    def error(self) -> SessionMessage | None:
        """Returns an error for the request that the line answers; None if it shows none."""
        match = _ID_FIRST.match(self._head) or _ID_LAST.search(self._tail)
        if match is None:
            return None
        if self._size > MESSAGE_BYTES:
            error = error_of(Ending.UNFIT, f"it has {self._size} bytes; at most {MESSAGE_BYTES} are read")
        else:
            error = error_of(Ending.UNFIT, "it cannot be read as a message, or has too many parts")
        return SessionMessage(JSONRPCError(jsonrpc="2.0", id=int(match[1]), error=error))


class Lines:
    """Cuts what a server writes into lines. Keeps no more than MESSAGE_BYTES and one chunk."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._head = b""
        self._tail = b""

    def feed(self, chunk: bytes) -> Iterator[bytes | UnreadableLine]:
        """Yields the lines that end in the chunk. Raises Endless if the present one is longer than any may be."""
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._add(part)
            yield self._take()
        self._add(rest)
        if self._size > SKIPPED_BYTES:
            raise Endless

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= MESSAGE_BYTES:
            self._parts.append(part)
            return
        if self._parts or not self._head:
            kept = b"".join((*self._parts, part))
            self._head, part = kept[:_ENDS], kept
            self._parts = []
        self._tail = (self._tail + part)[-_ENDS:]

    def _take(self) -> bytes | UnreadableLine:
        line, size = b"".join(self._parts), self._size
        unreadable = UnreadableLine(self._head, self._tail, size) if size > MESSAGE_BYTES else None
        self._parts, self._size, self._head, self._tail = [], 0, b"", b""
        return unreadable or line


def message_of(line: bytes) -> SessionMessage | UnreadableLine:
    """Returns the message that a line, or a JSON body, is."""
    if parts_of(line) <= MOST_PARTS:
        try:
            return checked(SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False)))
        except ValueError:
            pass
    return UnreadableLine(line[:_ENDS], line[-_ENDS:], len(line))


def parts_of(text: bytes) -> int:
    """Returns how many values a JSON text may have at most."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def checked(item: SessionMessage) -> SessionMessage:
    """Returns the message; an error, or an unknown method, in place of one that the SDK would take long to examine."""
    message = item.message
    if isinstance(message, JSONRPCResponse) and _entries(message.result) > MOST_ENTRIES:
        return answer(message.id, Ending.UNFIT, f"it has more than {MOST_ENTRIES} entries in its lists")
    if isinstance(message, JSONRPCRequest | JSONRPCNotification) and _entries(message.params or {}) > MOST_ENTRIES:
        return SessionMessage(message.model_copy(update={"method": "turnkeeper/refused", "params": None}))
    return item


def answer(request_id: RequestId | None, ending: Ending, message: str) -> SessionMessage:
    """Returns an error that answers the request in the server's place."""
    return SessionMessage(JSONRPCError(jsonrpc="2.0", id=request_id, error=error_of(ending, message)))


def _entries(value: Any) -> int:
    """Returns how many entries there are in the value's lists, without those of free form."""
    count, left = 0, [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            left.extend(inner for name, inner in part.items() if name not in _FREE_FORM)
        elif isinstance(part, list):
            count += len(part)
            left.extend(part)
    return count


class Pace:
    """Slows down the reading of what a server sends: it may not take the replica's time from others.

    A server that sends more waits until its pipe, or its socket, is read again.
    """

    RATE: Final = 16 << 20
    """Bytes a second, in the long run."""
    BURST: Final = 48 << 20
    """Bytes at once, after a pause."""
    MESSAGE: Final = 16 << 10
    """Bytes that a message costs beside its own."""

    def __init__(self) -> None:
        self._left = float(self.BURST)
        self._at = time.monotonic()

    def spend(self, size: int) -> float:
        """Takes note of bytes that were read. Returns the seconds to wait before more is read."""
        now = time.monotonic()
        self._left = min(self.BURST, self._left + (now - self._at) * self.RATE) - size
        self._at = now
        return max(0.0, -self._left / self.RATE)
