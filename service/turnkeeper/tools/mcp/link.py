"""A connection to an MCP server below the protocol: two streams of messages, and how it ends."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from turnkeeper.visible_text import visible


def one_line(text: str) -> str:
    """Returns a server's text: 200 characters on one line, without hidden ones."""
    return visible(" ".join(text[:200].split()))


class CannotOpen(Exception):
    """No connection to a server can be opened. The message is for the operator, without a secret."""


async def _end(*, quoted: bool) -> str:  # noqa: ARG001 - there is nothing to quote
    return "the connection ended"


class EndText(Protocol):
    """Returns why a connection ended, for the operator."""

    async def __call__(self, *, quoted: bool) -> str:
        """`quoted`: the text may quote the server. Only before it was in use: later it may quote its calls."""
        ...


@dataclass(slots=True, kw_only=True)
class Link:
    """The streams of one connection."""

    read: Any
    """A stream of the SDK's, with what the server sends."""
    write: Any
    """A stream of the SDK's, with what is sent to the server."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once nothing more comes from the server."""
    end_text: EndText = _end
