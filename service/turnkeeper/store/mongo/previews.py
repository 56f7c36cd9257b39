"""Stores previews for other replicas: text of messages that are being written. Never part of the history."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from pymongo.errors import BulkWriteError

from turnkeeper.domain.session import SessionKey
from turnkeeper.store.mongo.client import Connection, Document
from turnkeeper.store.mongo.documents import SCHEMA, decode, encode
from turnkeeper.store.mongo.transactions.writes import DUPLICATE_KEY
from turnkeeper.store.notifications import PreviewChunk

PREVIEWS_KEPT: Final = timedelta(minutes=30)
"""The time from a chunk's insert to its removal."""
CHUNKS_PER_READ: Final = 4096


class Previews:
    """Implements `PreviewStore`."""

    _connection: Connection
    _replica: str

    async def put_previews(self, chunks: Sequence[PreviewChunk]) -> None:
        """Sends one unordered insert. Nothing depends on the exact expiry, so it is set by this process's clock."""
        if not chunks:
            return
        common = {"expire_at": datetime.now(UTC) + PREVIEWS_KEPT, "replica": self._replica, "schema": SCHEMA}
        with self._connection.call("put_previews"):
            try:
                await self._connection.partials.insert_many([encode(chunk) | common for chunk in chunks], ordered=False)
            except BulkWriteError as error:
                if any(failure["code"] != DUPLICATE_KEY for failure in (error.details or {}).get("writeErrors", ())):
                    raise

    async def previews(self, key: SessionKey, *, message_id: str, attempt: int, after: int) -> Sequence[PreviewChunk]:
        match: Document = {
            "tenant": key.tenant,
            "session_id": key.session_id,
            "message_id": message_id,
            "attempt": attempt,
            "offset": {"$gte": after},
        }
        with self._connection.call("previews"):
            documents = (
                await self._connection.partials.find(match)
                .sort("offset")
                .limit(CHUNKS_PER_READ)
                .to_list(CHUNKS_PER_READ)
            )
        return self._connection.unreadable.passed_over(documents, lambda document: decode(PreviewChunk, document))
