"""Where an issuer's keys come from: a file, or a URL."""

import asyncio
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import aiohttp

MOST_BYTES: Final = 1 << 20
"""Bytes of a JWK set, at most."""
TIME: Final = 5.0
"""Seconds that one fetch may take."""


class KeysUnreadable(Exception):
    """The keys cannot be read. The message is the reason."""


class KeySource(Protocol):
    """Reads a JWK set."""

    name: str
    """The file or the URL, for log lines."""

    async def read(self) -> bytes:
        """Returns the JWK set. Raises KeysUnreadable."""
        ...

    async def close(self) -> None:
        """Closes its connections."""
        ...


class KeyFile:
    """A JWK set in a file."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    async def read(self) -> bytes:
        """Returns the file's content. Raises KeysUnreadable."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                return _checked(file.read(MOST_BYTES + 1))
        except OSError as error:
            raise KeysUnreadable(error.strerror or str(error)) from None

    async def close(self) -> None:
        """Does nothing."""


class KeyServer:
    """A JWK set at a URL. It is read anew on a connection of its own each time."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)  # a password in it is not logged
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._session: aiohttp.ClientSession | None = None

    async def read(self) -> bytes:
        """Returns the answer's body. Raises KeysUnreadable for anything but status 200; it follows no redirect."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),
                timeout=aiohttp.ClientTimeout(total=TIME),
                trust_env=True,
            )
        try:
            async with self._session.get(self._url, allow_redirects=False) as response:
                if response.status != 200:
                    raise KeysUnreadable(f"its status is {response.status}")
                body = bytearray()
                async for chunk in response.content.iter_chunked(64 << 10):
                    body += chunk
                    if len(body) > MOST_BYTES:
                        break
                return _checked(bytes(body))
        except TimeoutError:
            raise KeysUnreadable(f"it did not answer within {TIME:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise KeysUnreadable(f"{type(error).__name__}: {error}") from None

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()


def _checked(content: bytes) -> bytes:
    if len(content) > MOST_BYTES:
        raise KeysUnreadable(f"it has more than {MOST_BYTES} bytes")
    return content
