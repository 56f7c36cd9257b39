"""The tool servers of the catalogue: their sources, which run beside the turns."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NoReturn

from turnkeeper.isolation import ends_task
from turnkeeper.tools.catalogue import ToolServer
from turnkeeper.tools.contract import ServerSource, SourceUnreachable
from turnkeeper.tools.under_way import CallsUnderWay

RESTART_PAUSE: Final = 5.0
"""Seconds after which a source starts again that failed by a defect."""
LIST_TIME: Final = 5.0
"""Seconds that a start waits for the lists of all servers. One that is down costs no start."""

RunningServer = tuple[ToolServer, ServerSource]
"""A server of the catalogue, and its source."""
Reader = Callable[[ToolServer], ServerSource]
"""Makes the source of a server. Opens no connection. Raises BadFile for a table that cannot be used."""

logger = logging.getLogger(__name__)


def readers(*, needs_keys: bool = False) -> Mapping[str, Reader]:
    """Returns the reader of each kind of server that this version has.

    `needs_keys`: other processes publish at the same port what verifies their calls, so that all must have one key.
    """
    return {"mcp": _mcp, "grpc": partial(_over_grpc, needs_keys=needs_keys)}


def _over_grpc(server: ToolServer, *, needs_keys: bool) -> ServerSource:
    from turnkeeper.tools.remote.table import source_of  # noqa: PLC0415 - its libraries only where it is needed

    return source_of(server, needs_keys=needs_keys)


class ToolServers:
    """The sources of all servers. They change when the catalogue is read again."""

    def __init__(self, servers: Sequence[ToolServer], readers: Mapping[str, Reader]) -> None:
        """Raises BadFile for a table that cannot be used."""
        self._readers = readers
        self._sources: dict[str, RunningServer] = {}
        self._tasks: dict[ServerSource, asyncio.Task[NoReturn]] = {}
        self.under_way = CallsUnderWay()
        """The calls of the sources; the toolbox that has them counts its own here."""
        self._group: asyncio.TaskGroup | None = None
        self.listed = asyncio.Event()
        """Set once each server has listed its tools or had LIST_TIME for it."""
        self.set(self.with_sources(servers))

    @property
    def sources(self) -> Sequence[ServerSource]:
        """Returns the sources in the order of the catalogue."""
        return [source for _, source in self._sources.values()]

    def with_sources(self, servers: Sequence[ToolServer]) -> Mapping[str, RunningServer]:
        """Returns a source for each server: the present one of a server whose table has not changed.

        Raises BadFile for a table that cannot be used.
        """
        kept = {name: pair for name, pair in self._sources.items() if pair[0] in servers}
        return {server.name: kept.get(server.name) or (server, self._source(server)) for server in servers}

    @asynccontextmanager
    async def trying(self, sources: Mapping[str, RunningServer]) -> AsyncIterator[None]:
        """Runs the new ones among these sources for a `with` block, and lists their tools before it. Changes no other.

        Those that `set` takes within the block run on.
        """
        new = [source for _, source in sources.values() if source not in self._tasks]
        self._start(new)
        try:
            await asyncio.gather(*(self._refresh(source, LIST_TIME) for source in new))
            yield
        finally:
            for source in set(new).difference(self.sources):
                self._stop(source)

    def set(self, sources: Mapping[str, RunningServer]) -> None:
        """Takes these sources from now on. Each of those that are gone is stopped once none of its calls runs."""
        gone = {source for _, source in self._sources.values()} - {source for _, source in sources.values()}
        self._sources = dict(sources)
        self._start(self.sources)
        for source in gone:
            self._stop(source)

    async def run(self) -> NoReturn:
        """Runs all sources until it is cancelled. Lists their tools first."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._start(self.sources)
            try:
                await self.refresh()
                self.listed.set()
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None
                self._tasks.clear()
        raise AssertionError("a future that nothing sets")

    async def refresh(self, *, wait: float = LIST_TIME) -> None:
        """Lists the tools of all servers anew, while `run` runs.

        Logs a WARNING for each that does not answer within `wait` seconds.
        """
        await asyncio.gather(*(self._refresh(source, wait) for source in self.sources))

    async def _refresh(self, source: ServerSource, wait: float) -> None:
        reason = f"no list within {wait:g} s"
        try:
            async with asyncio.timeout(wait):
                await source.refresh()
            return
        except TimeoutError:
            pass
        except SourceUnreachable as error:
            reason = str(error)
        except Exception as error:  # the source runs on, and lists its tools by itself
            logger.exception("the tools of %s could not be listed by a defect of ours", source.name)
            reason = type(error).__name__
        logger.warning(
            "the tool server %s does not answer: its tools are offered as last listed, and are looked for again: %s",
            *(source.name, reason),
        )

    def _source(self, server: ToolServer) -> ServerSource:
        reader = self._readers.get(server.kind)
        if reader is None:
            server.refuse(server.kind, "is a kind of server that this version cannot speak to")
        return reader(server)

    def _start(self, sources: Iterable[ServerSource]) -> None:
        """Starts what does not run yet."""
        for source in sources:
            if self._group is not None and source not in self._tasks:
                self._tasks[source] = self._group.create_task(_run(source))

    def _stop(self, source: ServerSource) -> None:
        """Stops a source after its last call."""
        if self._group is not None and (task := self._tasks.pop(source, None)) is not None:
            self._group.create_task(self._stop_after_calls(source, task))

    async def _stop_after_calls(self, source: ServerSource, task: asyncio.Task[NoReturn]) -> None:
        await self.under_way.ended(source)
        task.cancel()


async def _run(source: ServerSource) -> NoReturn:
    """Runs a source until it is cancelled. One that fails by a defect starts again: it must not end the server."""
    while True:
        try:
            await source.run()
        except BaseException as error:
            if ends_task(error):
                raise
            logger.exception(
                "the tool server %s failed by a defect of ours: it starts again in %g s", source.name, RESTART_PAUSE
            )
        await asyncio.sleep(RESTART_PAUSE)


def _mcp(server: ToolServer) -> ServerSource:
    """Makes the source of an MCP server. Imports the SDK, which takes a second and is not installed everywhere."""
    try:
        from turnkeeper.tools.mcp.source import source_of  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("mcp", "mcp_types"):
            raise
        server.refuse("mcp", "needs the package mcp: pip install 'turnkeeper[mcp]'")
    return source_of(server)
