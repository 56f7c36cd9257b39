"""What replicas learn of each other: change notifications, previews, heartbeats, secrets."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta

from tests.memory_store.part import Part
from tests.memory_store.state import Heartbeat
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.contract import StoredHeartbeat
from turnkeeper.store.notifications import Notification, PreviewChunk


class Replicas(Part):
    """Implements `EventLog.notifications`, `PreviewStore` and `ReplicaRegistry`."""

    _position: int | None = None
    """In the list of changes, where the last reader of notifications ended."""

    @asynccontextmanager
    async def notifications(self) -> AsyncIterator[AsyncIterator[Notification]]:
        await self._enter("notifications")
        if self._position is None:
            self._position = len(self._database.changes)
        async with aclosing(self._read(self._position)) as notifications:
            yield notifications

    async def _read(self, position: int) -> AsyncGenerator[Notification]:
        changed = asyncio.Event()
        self._database.listeners.add(changed)
        try:
            while True:
                changed.clear()
                while position < len(self._database.changes):
                    change = self._database.changes[position]
                    position = self._position = position + 1
                    if not change.by or change.by != self._replica:
                        yield change.notification
                await changed.wait()
        finally:
            self._database.listeners.discard(changed)

    async def put_previews(self, chunks: Sequence[PreviewChunk]) -> None:
        await self._enter("put_previews")
        for chunk in chunks:
            place = (chunk.session_key, chunk.message_id, chunk.attempt, chunk.offset)
            if place not in self._database.previews:
                self._database.previews[place] = chunk
                self._database.announce(chunk, by=self._replica)

    async def previews(self, key: SessionKey, *, message_id: str, attempt: int, after: int) -> Sequence[PreviewChunk]:
        await self._enter("previews")
        places = sorted(place for place in self._database.previews if place[:3] == (key, message_id, attempt))
        return [self._database.previews[place] for place in places if place[3] >= after]

    async def write_heartbeat(self, *, silent_after: timedelta) -> StoredHeartbeat:
        await self._enter("write_heartbeat")
        database = self._database
        database.heartbeats[self._replica] = Heartbeat(database.now(), silent_after, self._process)
        return StoredHeartbeat(database.now(), database.others_alive(self._replica))

    async def secret(self, name: str) -> bytes:
        await self._enter("secret")
        return self._database.secrets.setdefault(name, secrets.token_bytes(32))

    async def ping(self) -> None:
        await self._enter("ping")
