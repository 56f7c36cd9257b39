"""Takes what aiohttp has collected of a body all at once. Its own read asks the connection after each part to go on."""

# ruff: noqa: SLF001 - there is no public way; with another version than TRIED, aiohttp's own read is used

from typing import Any, Final

import aiohttp

TRIED: Final = "3.14.5"
"""The version of aiohttp whose private parts are used."""
IS_TRIED: Final = aiohttp.__version__ == TRIED


def taken(content: aiohttp.StreamReader, most: int) -> bytes:
    """Returns what there is of the body, at most `most` bytes."""
    parts: Any = content
    # aiohttp's own read lets a connection that has stopped go on, and leaves what is beyond `most`.
    if not IS_TRIED or parts._protocol._reading_paused or parts._size > most or parts._buffer_offset:
        return content.read_nowait(most)
    data = b"".join(parts._buffer)
    parts._buffer.clear()
    parts._size = 0
    parts._cursor += len(data)
    if parts._http_chunk_splits:
        parts._http_chunk_splits.clear()
    return data
