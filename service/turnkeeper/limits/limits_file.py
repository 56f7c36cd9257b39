"""The limits as they are now: those of a file that may change while the server runs."""

from collections.abc import Callable, Collection
from pathlib import Path

from turnkeeper.limits.table import MAX_BYTES, LimitTable, parse
from turnkeeper.watched_file import WatchedFile


class LimitsFile:
    """The limits file. Without one there are no limits."""

    def __init__(self, path: Path | None, *, methods: Collection[str]) -> None:
        """`methods`: the names that a rate may have. Raises BadFile."""
        self.file: WatchedFile[LimitTable] | None = None
        if path is not None:
            self.file = WatchedFile(
                path, lambda content: parse(path, content, methods=methods), name="limits", max_bytes=MAX_BYTES
            )

    def table(self) -> LimitTable | None:
        """Returns the limits of all tenants, or None without a file."""
        return self.file.value if self.file is not None else None

    def report_to(self, report: Callable[[str, str], None]) -> None:
        """Reports each change of the file: `report` is called as that of WatchedFile."""
        if self.file is not None:
            self.file.report = report

    async def run(self) -> None:
        """Follows the file until it is cancelled. Returns at once if there is none."""
        if self.file is not None:
            await self.file.run()
