"""A file that an operator may change while the server runs: its content is compared, a bad one keeps the old value.

Kubernetes swaps a symbolic link, editors replace the file, and times of files lie: only its content counts. Others
write in place, where the first half may be a valid file: so a new content must stand still first.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Generic, NoReturn, TypeVar

CHECK_EVERY: Final = 1.0
"""Seconds between two looks at the file: a change is in effect within two seconds."""
STANDS_STILL: Final = 0.5
"""Seconds for which a new content must have been the same before it counts."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


class BadFile(Exception):
    """The file cannot be used. The message names where in the file, and why."""


class WatchedFile(Generic[T]):
    """The value of a file, which follows the file's content."""

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes], T],
        *,
        name: str,
        max_bytes: int,
        report: Callable[[str, str], None] = lambda _name, _outcome: None,
        stands_still: float = STANDS_STILL,
    ) -> None:
        """Reads the file. Raises BadFile if it cannot be read, has more than `max_bytes`, or `parse` raises BadFile.

        `name` is what log lines call it, such as "principals". `report` is called at each change of the content after
        the first reading, with `name` and "LOADED", or "REFUSED" if the new content was bad.
        """
        self._path = path
        self._parse = parse
        self._name = name
        self._max_bytes = max_bytes
        self._stands_still = stands_still
        self.apply: Callable[[T], Awaitable[None]] | None = None
        """Awaited with each new value before it counts; it may raise BadFile, which refuses the value."""
        self.report = report
        self._content: bytes | BadFile = self._read()
        if isinstance(self._content, BadFile):
            raise self._content
        self.value: T = parse(self._content)
        """Of the last good content."""
        self.generation = 1
        """Grows with each new value."""

    async def run(self) -> NoReturn:
        """Looks at the file again and again until it is cancelled."""
        while True:
            await asyncio.sleep(CHECK_EVERY)
            await self.look()

    async def look(self) -> bool:
        """Takes over the file's content if it has changed, once it stands still. Returns True if there is a new value.

        The value stays as it is while the file cannot be used; the reason is logged once for each such content.
        """
        content = await self._standing_still()
        if _same(content, self._content):
            return False
        self._content = content
        try:
            if isinstance(content, BadFile):
                raise content
            value = await asyncio.to_thread(self._parse, content)
            if self.apply is not None:
                await self.apply(value)
        except BadFile as error:
            logger.error("%s not reloaded, the last good ones stay in effect: %s", self._name, error)
            self.report(self._name, "REFUSED")
            return False
        self.value = value
        self.generation += 1
        logger.info("%s reloaded from %s", self._name, self._path)
        self.report(self._name, "LOADED")
        return True

    async def _standing_still(self) -> bytes | BadFile:
        """Returns the content once two readings agree, or at once if it has not changed."""
        content = await asyncio.to_thread(self._read)
        before: bytes | BadFile = self._content
        while not _same(content, before) and not _same(content, self._content):
            await asyncio.sleep(self._stands_still)
            before, content = content, await asyncio.to_thread(self._read)
        return content

    def _read(self) -> bytes | BadFile:
        """Returns the content, or why it cannot be read."""
        try:
            with self._path.open("rb") as file:
                content = file.read(self._max_bytes + 1)
        except OSError as error:
            return BadFile(f"{self._path}: {error.strerror or type(error).__name__}")
        if len(content) > self._max_bytes:
            return BadFile(f"{self._path}: it has more than {self._max_bytes:,} bytes")
        return content


def _same(one: bytes | BadFile, other: bytes | BadFile) -> bool:
    """Returns True for two equal contents, and for two files that cannot be used for the same reason."""
    if isinstance(one, BadFile) or isinstance(other, BadFile):
        return isinstance(one, BadFile) and isinstance(other, BadFile) and str(one) == str(other)
    return one == other
