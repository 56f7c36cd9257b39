"""Previews for other replicas: every 100 ms one insert with what all messages that are written here have said since.

A message that is whole before its second look is never shared, and nothing is while no other replica lives: one that
starts gets the text so far. A turn never waits for it. An insert that fails is made again as it was, so that pieces
always fit together; what the others do not get in time, they get with the whole message.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.execution.lease import HeldLease
from turnkeeper.engine.streaming.feed import Feeds
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import PreviewStore
from turnkeeper.store.notifications import PreviewChunk

EVERY = 0.1
PIECE_BYTES = 64 * 1024
"""Of one message in one insert; the rest comes with the next."""

logger = logging.getLogger(__name__)


class PreviewPublisher:
    """One on every replica."""

    def __init__(
        self, store: PreviewStore, feeds: Feeds, *, held: Callable[[], Iterable[HeldLease]], alone: Callable[[], bool]
    ) -> None:
        """`held`: the leases of the turns that run here. `alone`: no other replica lives."""
        self._store = store
        self._feeds = feeds
        self._held = held
        self._alone = alone
        self._met: set[Preview] = set()
        """What had text at the last look."""
        self._failing = False

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.share()
            except Exception:
                logger.exception("previews cannot be shared")
                await asyncio.sleep(1.0)

    async def share(self) -> None:
        """Once."""
        if self._alone():
            self._met.clear()
            return
        found = list(self._found())
        if not found:
            return
        try:
            await self._store.put_previews([piece for _, piece in found])
        except ServiceUnavailable:
            if not self._failing:
                logger.warning("the database does not take previews: other replicas' watchers wait for whole messages")
            self._failing = True
            return
        self._failing = False
        for preview, _ in found:
            preview.shared()

    def _found(self) -> Iterable[tuple[Preview, PreviewChunk]]:
        met, self._met = self._met, {preview for _, preview in self._written() if preview.size}
        for key, preview in self._written():
            chunk = preview.unshared(most=PIECE_BYTES) if preview in met else None
            if chunk is None:
                continue
            yield (
                preview,
                PreviewChunk(
                    tenant=key.tenant,
                    session_id=key.session_id,
                    turn_id=preview.turn_id,
                    message_id=preview.message_id,
                    attempt=preview.attempt,
                    offset=chunk.offset,
                    text=chunk.text.decode(),
                ),
            )

    def _written(self) -> Iterable[tuple[SessionKey, Preview]]:
        for key in (held.key for held in self._held()):
            feed = self._feeds.get(key)
            preview = feed.preview if feed is not None else None
            if preview is not None and preview.ours and not preview.over and preview.counts():
                yield key, preview
