"""What the HTTP client has collected of a body, for a reader that does not come at once."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import aiohttp
import httpx2


async def parts_of(response: httpx2.Response) -> AsyncGenerator[bytes]:
    """Yields the answer's body as it arrives, what has arrived together in one part.

    If the connection breaks, what arrived before is yielded first: the client itself would drop it.
    """
    try:
        async with aclosing(response.aiter_bytes()) as parts:
            async for part in parts:
                yield part
    except (httpx2.HTTPError, aiohttp.ClientError, OSError):
        if rest := _rest(response):
            yield rest
        raise


def may_wait(response: httpx2.Response) -> bool:
    """Returns True if nothing is lost when the connection breaks before the reader comes."""
    return "content-encoding" not in response.headers and _content(response) is not None


def _content(response: httpx2.Response) -> aiohttp.StreamReader | None:
    """Returns aiohttp's own stream of the body; None if it is not where this version has it."""
    stream: object = response.stream
    for name in ("_stream", "_aiohttp_response", "content"):
        stream = getattr(stream, name, None)
    return stream if isinstance(stream, aiohttp.StreamReader) else None


def _rest(response: httpx2.Response) -> bytes:
    """Returns what arrived before the connection broke and was not read."""
    content = _content(response)
    if content is None or "content-encoding" in response.headers:
        return b""
    broken = content.exception()
    content.set_exception(None)  # type: ignore[arg-type]  # it refuses to give what it has while it has an error
    try:
        return content.read_nowait()
    finally:
        if broken is not None:
            content.set_exception(broken)
