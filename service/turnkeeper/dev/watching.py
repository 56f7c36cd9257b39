"""Reads the files of agents and tools again when they change; a bad one leaves the last good one in effect."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from turnkeeper.cannot_start import ERRORS

LOOK_EVERY: Final = 0.25
"""Seconds between two looks. A change counts once two looks in a row have found the same content."""


class WatchedFiles:
    """The files of a running server, by their content: editors replace files, and their times are coarse."""

    def __init__(
        self,
        paths: Sequence[Path],
        reload: Callable[[], Awaitable[None]],
        *,
        reloaded: Callable[[Sequence[Path]], None],
        refused: Callable[[Exception], None],
    ) -> None:
        """`reloaded` is called with the files that changed, `refused` with the error that keeps the last good ones."""
        self._paths = paths
        self._reload = reload
        self._reloaded, self._refused = reloaded, refused
        self._tried = self._last = self._contents()

    async def run(self) -> NoReturn:
        """Looks at the files again and again until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self.look()

    async def look(self) -> None:
        """Reads the files again if their content has changed, and stood still since the last look."""
        contents = await asyncio.to_thread(self._contents)
        stands_still, self._last = contents == self._last, contents
        if not stands_still or contents == self._tried:
            return
        before, self._tried = self._tried, contents
        changed = [path for path, old, new in zip(self._paths, before, contents, strict=True) if old != new]
        try:
            await self._reload()
        except ERRORS as error:
            self._refused(error)
        else:
            self._reloaded(changed)

    def _contents(self) -> list[bytes | None]:
        """Returns the content of each file; None of one that cannot be read."""
        return [_content(path) for path in self._paths]


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
