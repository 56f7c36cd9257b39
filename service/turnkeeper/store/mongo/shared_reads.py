"""Reads that many callers want at the same time: one is under way for each key, and the next one serves all who came.

A caller's read begins after its call, so that it shows no less than a read of its own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, Generic, TypeVar

from turnkeeper.errors import ServiceUnavailable, SessionError
from turnkeeper.store.mongo.transactions.tasks import Tasks

PATIENCE_S: Final = 0.5
"""Seconds that a caller waits for a shared read, at most: while the database is slow, each reads for itself."""

V = TypeVar("V")


class SharedReads(Generic[V]):
    """The reads of one kind that are under way on this replica."""

    def __init__(self, tasks: Tasks, *, patience: float = PATIENCE_S) -> None:
        """`tasks` owns the reads that several callers share: none of them ends with one caller."""
        self._tasks = tasks
        self._patience = patience
        self._waiting: dict[Hashable, list[asyncio.Future[tuple[V] | None]]] = {}
        """The callers that came since the read of this key began that is under way."""

    async def read(self, key: Hashable, fetch: Callable[[], Awaitable[V]]) -> V:
        """Returns what `fetch` returns, which began after this call. All calls with one key have an equal `fetch`.

        Raises what `fetch` raises.
        """
        if (waiting := self._waiting.get(key)) is None:
            self._waiting[key] = []
            try:
                return await fetch()
            finally:
                self._begin_next(key, fetch)
        shared: asyncio.Future[tuple[V] | None] = asyncio.get_running_loop().create_future()
        waiting.append(shared)
        result: tuple[V] | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                result = await shared
        return await fetch() if result is None else result[0]

    def _begin_next(self, key: Hashable, fetch: Callable[[], Awaitable[V]]) -> None:
        """Begins the read for those who wait, if any: the one that was under way has ended."""
        waiting = [shared for shared in self._waiting.pop(key) if not shared.done()]
        if waiting:
            self._waiting[key] = []
            Context().run(self._tasks.start, self._serve(key, fetch, waiting))  # it is the work of no single call

    async def _serve(self, key: Hashable, fetch: Callable[[], Awaitable[V]], waiting: list[Any]) -> None:
        """Reads for these callers. After an error of another kind than ServiceUnavailable each reads for itself."""
        result: tuple[V] | None = None
        unavailable = False
        try:
            result = (await fetch(),)
        except SessionError as error:
            unavailable = isinstance(error, ServiceUnavailable) and not error.needs_newer_version
        finally:
            for shared in waiting:
                if not shared.done() and unavailable:
                    shared.set_exception(ServiceUnavailable())
                elif not shared.done():
                    shared.set_result(result)
            self._begin_next(key, fetch)
