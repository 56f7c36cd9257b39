"""Shares what is due among the living replicas, so that each does a part of it, and what one leaves is done by others.

Two replicas that work on the same documents at the same time make each other's transactions begin again.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Final, TypeAlias

from turnkeeper.store.maintenance import SHARE_KEPT
from turnkeeper.store.mongo.client import Collection, Connection, Document
from turnkeeper.store.mongo.transactions.orphans import Orphans

Cursor: TypeAlias = Any
"""A cursor of the driver."""
Due: TypeAlias = Callable[[timedelta], Document]
"""Returns the filter for the documents that have been due for so long."""
NOW_DUE: Final = timedelta()


class Shares:
    """What of the documents that are due is this replica's."""

    def __init__(self, connection: Connection, orphans: Orphans) -> None:
        self._connection = connection
        self._orphans = orphans

    async def pages(
        self, operation: str, collection: Collection, due: Due, *, by: str, size: int, fields: Document | None = None
    ) -> AsyncGenerator[tuple[Sequence[Document], int]]:
        """Yields documents of this replica's share, at most `size` together and in order of the time `by`.

        With each page comes about how many of the share are left behind it. What has been due for SHARE_KEPT follows,
        of all shares, with 0. Reads a page when it is needed, so that it has nothing that another replica has done
        in the meantime. `operation` is measured.
        """
        async with aclosing(self._cursors(operation, collection, due, by=by, fields=fields)) as cursors:
            async for cursor, share in cursors:
                left = share
                cursor.batch_size(size)
                try:
                    while documents := await self._next(operation, cursor, size):
                        left = max(0, left - len(documents))
                        yield documents, left
                finally:
                    await cursor.close()

    async def _next(self, operation: str, cursor: Cursor, size: int) -> Sequence[Document]:
        with self._connection.call(operation):
            documents: Sequence[Document] = await cursor.to_list(size)
        return documents

    async def _cursors(
        self, operation: str, collection: Collection, due: Due, *, by: str, fields: Document | None
    ) -> AsyncGenerator[tuple[Cursor, int]]:
        """Yields a cursor over this replica's share, and its size. Then, if there are others, cursors over what is
        left, with 0.

        Replicas that help each other begin from the other end, and each at a place of its own.
        """
        with self._connection.call(operation):
            count = await collection.count_documents(due(NOW_DUE))
            number, replicas = await self._orphans.share() if count else (0, 1)
        first, end = (count * place // replicas for place in (number, number + 1))
        if first < end:
            yield collection.find(due(NOW_DUE), fields).sort(by, 1).skip(first).limit(end - first), end - first
        if replicas == 1:
            return
        late = due(SHARE_KEPT)
        with self._connection.call(operation):
            before = await collection.count_documents(late) * number // replicas
        yield collection.find(late, fields).sort(by, -1).skip(before), 0
        if before:
            yield collection.find(late, fields).sort(by, -1).limit(before), 0
