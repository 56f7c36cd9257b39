"""An MCP server as a source of tools: one task holds its connection, and calls share it."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

import anyio

from turnkeeper.domain.tool import ToolSpec
from turnkeeper.tools.catalogue import ToolServer
from turnkeeper.tools.contract import NotStarted, OutcomeUnknown, SourceUnreachable, ToolContext, ToolError
from turnkeeper.tools.mcp.breaker import Breaker
from turnkeeper.tools.mcp.calls import ConnectionFailed, SessionLost, call_of
from turnkeeper.tools.mcp.link import CannotOpen, Link
from turnkeeper.tools.mcp.listing import Listed, listed
from turnkeeper.tools.mcp.session import McpSession, opened, tools_of, watch_tools
from turnkeeper.tools.mcp.tables import McpServer, server_of
from turnkeeper.tools.results import UnfitResult
from turnkeeper.tools.server_log import ServerLog

START_TIME: Final = 30.0
"""Seconds for a connection to open, with the agreement on a revision and the list of tools."""
LOOK_AGAIN: Final = 30.0
"""Seconds from one try to the next to reach a server whose tools were never listed."""
RELIST_PAUSE: Final = 1.0
"""Seconds between two listings, at least: a server may announce changes without end."""
UNSTEADY: Final = 5
"""Listings in a row that all differ, that are a problem for the operator to see."""

logger = logging.getLogger(__name__)
for _name in ("mcp", "client"):  # the SDK's own lines quote what servers send, as often as they send it
    logging.getLogger(_name).setLevel(logging.CRITICAL)


@dataclass(slots=True, eq=False)
class _Connection:
    """An open connection."""

    session: McpSession
    link: Link
    calls: int = 0
    """Calls that use it now."""
    is_closing: bool = False
    """True if it is to be closed: the server does not know its session any more."""
    relist: bool = False
    """True if the list of tools has changed."""
    is_counted: bool = False
    """True if its end was counted as a failure."""
    stirred: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when one of the above has changed, or the link has ended."""

    @property
    def is_usable(self) -> bool:
        """Returns True if calls may be sent."""
        return not self.is_closing and not self.link.ended.is_set()

    def close(self) -> None:
        """Has the connection closed by the task that holds it."""
        self.is_closing = True
        self.stirred.set()

    def list_again(self) -> None:
        """Has the tools listed again by the task that holds the connection."""
        self.relist = True
        self.stirred.set()


class McpTools:
    """The tools of one server. Calls fail while `run` does not run."""

    def __init__(self, server: McpServer, environ: Mapping[str, str] = os.environ) -> None:
        """`environ` has the variables that the table names."""
        self._server = server
        self._environ = environ
        self._tools: Mapping[str, Listed] = {}
        self._refused: Mapping[str, str] = {}
        self._listing = 0
        self._changes_in_a_row = 0
        self._listed_at = -RELIST_PAUSE
        self._one_listing = asyncio.Lock()
        self._breaker = Breaker()
        self._log = ServerLog(server.name)
        self._reason = "it was not reached yet"
        self._connection: _Connection | None = None
        self._wanted = asyncio.Event()
        """Set while a call waits for a connection."""
        self._attempt: asyncio.Future[_Connection | None] | None = None
        """The end of the try to connect that calls wait for; None if none does."""
        self._is_running = False
        self.revision = ""
        """The revision of the protocol that is spoken, or was last; empty before."""

    @property
    def name(self) -> str:
        """Returns the server's name in the catalogue."""
        return self._server.name

    @property
    def listing(self) -> int:
        """Returns a number that changes whenever `specs` would return something else."""
        return self._listing

    @property
    def problem(self) -> str:
        """Returns why calls fail now, or that the list is never the same, for the operator; empty if neither is so."""
        if self._reason:
            return self._reason
        if self._changes_in_a_row >= UNSTEADY:
            return f"its list of tools was another one at each of the last {self._changes_in_a_row} listings"
        return ""

    def specs(self) -> Sequence[ToolSpec]:
        """Returns the tools as last listed. Raises SourceUnreachable before the first list."""
        if not self._listing:
            raise SourceUnreachable(f"the tool server {self.name}: {self._reason}")
        return [tool.spec for tool in self._tools.values()]

    async def refresh(self) -> None:
        """Lists the tools anew, while `run` runs. Raises SourceUnreachable."""
        connection = self._connection
        try:
            if connection is not None and connection.is_usable:
                await self._list(connection)
            elif await self._opened() is None:  # otherwise it has just listed them
                raise SourceUnreachable(self._reason)
        except CannotOpen as error:
            raise SourceUnreachable(str(error)) from None

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        """Runs the tool and returns its result as JSON text; see `ToolSource.call`."""
        decided_on = self._tools.get(name)
        for _ in range(2):
            connection = await self._opened_within(0.9 * context.timeout.total_seconds())
            tool = self._tools.get(name)
            if tool is None or decided_on is None:
                raise NotStarted("The tool's server does not have the tool any more; the call did not start.")
            if tool != decided_on:
                raise NotStarted("The tool has changed since this call was decided on; the call did not start.")
            connection.calls += 1
            try:
                return await self._call(connection, tool, arguments, context)
            except SessionLost:
                connection.close()
            finally:
                connection.calls -= 1
                connection.stirred.set()
        raise NotStarted("The tool's server has lost its session twice; the call did not start.")

    async def run(self) -> NoReturn:
        """Holds the connection until it is cancelled: opens it when it is needed, closes it when it is idle."""
        self._is_running = True
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if self._listing else LOOK_AGAIN):
                        await self._wanted.wait()
                await self._hold()
        finally:
            self._is_running = False
            self._settle(None)

    async def _call(
        self, connection: _Connection, tool: Listed, arguments: dict[str, object], context: ToolContext
    ) -> str:
        """Calls the tool on this connection, and takes note of whether the server answered."""
        try:
            text = await call_of(connection.session, tool, arguments, context)
        except ConnectionFailed:
            self._count_failure(connection)
            if connection.calls == 1:  # a new one reads secrets again; no other call is on this one
                connection.close()
            raise
        except OutcomeUnknown:
            self._count_failure(connection)
            raise
        except (ToolError, UnfitResult):
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()
        return text

    async def _opened_within(self, seconds: float) -> _Connection:
        """Returns the connection, once it is open. Raises NotStarted."""
        if pause := self._breaker.pause:
            raise NotStarted(f"The tool's server is down, and is tried again in {pause:.0f} s; the call did not start.")
        try:
            async with asyncio.timeout(seconds):
                connection = await self._opened()
        except TimeoutError:
            raise NotStarted("The tool's server did not start in time; the call did not start.") from None
        if connection is None:
            raise NotStarted("The tool's server is down; the call did not start.")
        return connection

    async def _opened(self) -> _Connection | None:
        """Returns the connection, once it is open; None if it cannot be opened."""
        if self._connection is not None and self._connection.is_usable:
            return self._connection
        if not self._is_running:
            return None
        if self._attempt is None:
            self._attempt = asyncio.get_running_loop().create_future()
            self._wanted.set()
        return await asyncio.shield(self._attempt)

    def _settle(self, connection: _Connection | None) -> None:
        """Ends the wait of calls for a connection."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None and not attempt.done():
            attempt.set_result(connection)

    async def _hold(self) -> None:
        """Opens the connection in a task of its own, and returns once it is closed.

        The SDK's task groups must be entered and left by one task, and they take a cancellation of it for their own.
        """
        self._wanted.clear()
        tried = asyncio.Event()
        holder = asyncio.create_task(self._connect(tried))
        holder.add_done_callback(lambda _: tried.set())
        reason = ""
        try:
            async with asyncio.timeout(START_TIME):
                await tried.wait()
            await asyncio.wait([holder])
        except TimeoutError:
            reason = f"it did not start within {START_TIME:g} s"
        finally:
            holder.cancel()
            await asyncio.wait([holder])
            was_open, self._connection = self._connection is not None, None
        if not was_open:
            self._breaker.failed()
            self._settle(None)
        if reason := reason or _reason_of(holder, was_open=was_open):
            if reason != self._reason:
                self._log.write(f" is down; its next call tries to reach it: {reason}")
            self._reason = reason

    async def _connect(self, tried: asyncio.Event) -> None:
        """Opens the connection, sets `tried`, and returns once the connection is closed. Raises what prevents that."""
        connection: _Connection | None = None

        def tools_changed() -> None:
            if connection is not None:
                connection.list_again()

        async with opened(self._server, self._environ, tools_changed=tools_changed) as (session, link):
            connection = _Connection(session, link)
            await self._list(connection)
            self.revision = session.protocol_version or ""
            self._reason, self._connection = "", connection
            self._settle(connection)
            tried.set()
            watches = [
                asyncio.create_task(watch_tools(session, connection.list_again)),
                asyncio.create_task(_watch_end(connection)),
            ]
            try:
                await self._until_closed(connection)
            finally:
                connection.is_closing = True
                for watch in watches:
                    watch.cancel()
                await asyncio.gather(*watches, return_exceptions=True)
            if link.ended.is_set():
                self._count_failure(connection)
                raise CannotOpen(await link.end_text(quoted=False))

    async def _until_closed(self, connection: _Connection) -> None:
        """Lists the tools when they have changed. Returns once the connection has ended, or is to be closed."""
        while connection.is_usable:
            try:
                async with asyncio.timeout(None if connection.calls else self._server.idle.total_seconds()):
                    await connection.stirred.wait()
            except TimeoutError:
                if not connection.calls:
                    return
            connection.stirred.clear()
            if connection.relist and connection.is_usable:
                connection.relist = False
                await asyncio.sleep(max(0.0, self._listed_at + RELIST_PAUSE - time.monotonic()))
                try:
                    await self._list(connection)
                except CannotOpen as error:
                    self._log.write(f": {error}: its tools stay as they were")

    async def _list(self, connection: _Connection) -> None:
        """Lists the tools, and takes them from now on. Raises CannotOpen."""
        async with self._one_listing:
            tools, refused = await asyncio.to_thread(listed, self.name, await tools_of(connection.session))
            self._listed_at = time.monotonic()
            is_other = tools != self._tools or not self._listing
            self._changes_in_a_row = self._changes_in_a_row + 1 if is_other and self._listing else 0
            if is_other:
                self._listing += 1
            for name in refused.keys() - self._refused.keys():
                self._log.write(f": its tool {name!r:.80} is not offered: {refused[name]}")
            self._tools, self._refused = tools, refused

    def _count_failure(self, connection: _Connection) -> None:
        """Counts a failure on a connection: one that has ended counts once, whatever number of calls it had."""
        if not connection.is_counted:
            self._breaker.failed()
        connection.is_counted = connection.link.ended.is_set() or connection.is_closing


def source_of(server: ToolServer) -> McpTools:
    """Returns the source of a server of the catalogue. Opens no connection. Raises BadFile."""
    return McpTools(server_of(server))


async def _watch_end(connection: _Connection) -> None:
    await connection.link.ended.wait()
    connection.stirred.set()


def _reason_of(holder: asyncio.Task[None], *, was_open: bool) -> str:
    """Returns why a connection did not open, or ended, for the operator; empty if it was closed as it should be.

    The end of a call that was given up may come while the connection is closed: the SDK has no place for it then.
    """
    error = None if holder.cancelled() else holder.exception()
    while isinstance(error, BaseExceptionGroup):  # of the SDK's task groups
        error = error.exceptions[0]
    if error is None:
        return "the SDK cancelled it" if holder.cancelled() else ""
    if isinstance(error, CannotOpen):
        return str(error)
    if was_open and isinstance(error, anyio.ClosedResourceError):
        return ""
    logger.error("the connection to a tool server failed by a defect", exc_info=error)
    return f"the connection failed ({type(error).__name__})"
