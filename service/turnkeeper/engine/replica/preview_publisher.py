"""Publishes previews to other replicas: every 100 ms one insert with the new text of all messages written here.

How far tools are goes the same way, in lines that replace each other.

A message that is whole before its second look is not published, and none is while there is no other replica: a replica
that starts later gets the text so far. A turn never waits for it. An insert that fails is repeated unchanged, so that
chunks always fit together; text that other replicas miss reaches them with the whole message.
"""

import logging
from collections.abc import Iterable

from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.lease import HeldLeases
from turnkeeper.engine.replica.heartbeat import Heartbeat
from turnkeeper.engine.replica.schedule import every
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import PreviewStore
from turnkeeper.store.notifications import PreviewChunk

INTERVAL = 0.1
"""Seconds between inserts."""
CHUNK_BYTES = 64 * 1024
"""Bytes of one message in one insert; the rest is published with the next one."""
ERROR_PAUSE = 1.0
"""Seconds that an unexpected error delays the next insert."""

logger = logging.getLogger(__name__)


class PreviewPublisher:
    """Publishes the previews of the turns that run here."""

    def __init__(self, store: PreviewStore, feeds: Feeds, *, held_leases: HeldLeases, heartbeat: Heartbeat) -> None:
        """`held_leases` names the turns that run here; `heartbeat` knows whether there are other replicas."""
        self._store = store
        self._feeds = feeds
        self._held_leases = held_leases
        self._heartbeat = heartbeat
        self._seen: set[Preview] = set()
        """The previews that had text at the last look."""
        self._line = 0
        """The number of the last line about a tool that was published."""
        self._failing = False

    async def run(self) -> None:
        """Publishes until it is cancelled."""
        await every(lambda: INTERVAL, self.publish, failure="previews not published", pause_after_error=ERROR_PAUSE)

    async def publish(self) -> None:
        """Publishes once what is new since the last time."""
        if self._heartbeat.alone:
            self._seen.clear()
            return
        new, lines = list(self._new_chunks()), list(self._new_lines())
        if not new and not lines:
            return
        try:
            await self._store.put_previews([*(chunk for _, chunk in new), *lines])
        except ServiceUnavailable:
            if not self._failing:
                logger.warning(
                    "previews not published: the database is unavailable; other replicas' watchers get whole messages "
                    "until it is back"
                )
            self._failing = True
            return
        self._failing = False
        for preview, _ in new:
            preview.mark_published()
        self._line = max([self._line, *(line.offset for line in lines)])

    def _new_chunks(self) -> Iterable[tuple[Preview, PreviewChunk]]:
        """Yields the next chunk of each preview that also had text at the last look."""
        previous, self._seen = self._seen, {preview for _, preview in self._local_previews() if preview.size}
        for key, preview in self._local_previews():
            chunk = preview.next_chunk(most=CHUNK_BYTES) if preview in previous else None
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

    def _new_lines(self) -> Iterable[PreviewChunk]:
        """Yields the newest line of each call whose tool has told how far it is since the last time."""
        for lease in self._held_leases:
            feed = self._feeds.get(lease.key)
            if feed is None or feed.progress is None or not lease.surely_held:
                continue
            for line in feed.progress.of_this_replica(since=self._line):
                yield PreviewChunk(
                    tenant=lease.key.tenant,
                    session_id=lease.key.session_id,
                    turn_id=line.turn_id,
                    message_id=line.tool_call_id,
                    attempt=line.attempt,
                    offset=line.number,
                    text=line.message,
                    tool_call_id=line.tool_call_id,
                    after=feed.last_seq,
                )

    def _local_previews(self) -> Iterable[tuple[SessionKey, Preview]]:
        """Yields the valid previews of the turns that run here."""
        for lease in self._held_leases:
            feed = self._feeds.get(lease.key)
            preview = feed.preview if feed is not None else None
            if preview is not None and preview.local and preview.valid:
                yield lease.key, preview
