"""Receives the text of messages that other replicas write, for the watchers of this one.

A lookup reads from the session's head and turn which message is being written, and that no event has ended it. Then its
chunks extend the text as they arrive. If a chunk leaves a gap, another lookup reads the stored chunks.
"""

import asyncio
import contextlib
import logging

from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.engine.eventlog.lease import HeldLeases
from turnkeeper.engine.streaming.feed import NO_MESSAGE, Feed
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.engine.streaming.tool_progress import ProgressLine
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import PreviewStore, SessionStore
from turnkeeper.store.notifications import PreviewChunk

LOOKUPS_AT_ONCE = 32
"""Sessions that are looked up at the same time."""
POLL = 1.0
"""Seconds between lookups of the sessions with watchers of previews, while no notifications arrive."""

logger = logging.getLogger(__name__)


class PreviewReceiver:
    """Keeps the previews of turns that run on other replicas."""

    def __init__(self, store: PreviewStore, sessions: SessionStore, feeds: Feeds, *, held_leases: HeldLeases) -> None:
        """`held_leases` names the turns that run here, whose text needs no lookup."""
        self._store = store
        self._sessions = sessions
        self._feeds = feeds
        self._held_leases = held_leases
        self.polling = True
        """No notifications arrive: every session with watchers of previews is looked up at intervals."""

    def receive(self, chunk: PreviewChunk) -> None:
        """Extends a session's preview by a chunk that another replica stored, or requests a lookup of the session."""
        feed = self._feeds.get(chunk.session_key)
        if feed is None or not feed.text_watchers:
            return
        if chunk.tool_call_id:
            _show(chunk, feed)
            return
        preview = feed.preview
        if preview is None or (preview.turn_id, preview.message_id) != (chunk.turn_id, chunk.message_id):
            up_to_date = feed.looked_up == (chunk.message_id, chunk.attempt)
        elif preview.attempt == chunk.attempt and not preview.local:
            up_to_date = preview.extend(chunk.offset, chunk.text)
        else:
            up_to_date = preview.attempt >= chunk.attempt
        if not up_to_date:
            feed.looked_up = (chunk.message_id, chunk.attempt)
            feed.request_preview()

    async def run(self) -> None:
        """Looks up the sessions that the feeds request, until it is cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._feeds.preview_requested.wait()
            if self.polling:
                self._feeds.request_previews()
            self._feeds.preview_requested.clear()
            keys = list(self._feeds.previews_requested)
            self._feeds.previews_requested.clear()
            for start in range(0, len(keys), LOOKUPS_AT_ONCE):
                await asyncio.gather(*(self._look_up(key) for key in keys[start : start + LOOKUPS_AT_ONCE]))

    async def _look_up(self, key: SessionKey) -> None:
        """Reads what another replica has written of the session's current message."""
        feed = self._feeds.get(key)
        if feed is None or not feed.text_watchers or self._held_leases.holds(key):
            return
        try:
            preview = await self._current(key, feed)
            if preview is None:
                return
            for chunk in await self._store.previews(
                key, message_id=preview.message_id, attempt=preview.attempt, after=preview.size
            ):
                preview.extend(chunk.offset, chunk.text)
        except ServiceUnavailable:
            feed.looked_up = NO_MESSAGE
            logger.warning(
                "previews of another replica not read: the database is unavailable; the session's watchers get whole "
                "messages, or the text with its next chunk",
                extra={"session": key.session_id},
            )
        except Exception:
            logger.exception(
                "previews of another replica not read; the session's watchers get whole messages",
                extra={"session": key.session_id},
            )

    async def _current(self, key: SessionKey, feed: Feed) -> Preview | None:
        """Returns the preview of the message that another replica writes now; None if there is none."""
        snapshot = await self._sessions.snapshot(key)
        preview = feed.preview
        if snapshot is None or (preview is not None and preview.local and preview.valid):
            return None
        turn, last_seq = snapshot.turn, snapshot.head.last_seq
        feed.notify_grown(last_seq)
        if preview is not None and last_seq < preview.started_after:
            return None
        if turn is None or turn.state is not TurnState.RUNNING or not turn.attempt:
            return None
        if preview is None or preview.local or not _is_of(preview, turn):
            return feed.begin_remote_preview(
                turn_id=turn.id, message_id=turn.next_message_id, attempt=turn.attempt, started_after=last_seq
            )
        preview.checked_through = max(preview.checked_through, last_seq)
        return None if preview.ended else preview


def _show(chunk: PreviewChunk, feed: Feed) -> None:
    """Shows a line about a tool of another replica, unless the log has grown since: the tool may have ended."""
    feed.notify_grown(chunk.after)
    if feed.last_seq == chunk.after:
        line = ProgressLine(
            turn_id=chunk.turn_id,
            attempt=chunk.attempt,
            tool_call_id=chunk.tool_call_id,
            message=chunk.text,
            after=chunk.after,
            is_local=False,
        )
        feed.show_progress(line)


def _is_of(preview: Preview, turn: Turn) -> bool:
    """Returns True if the preview is of the message that the turn's current attempt writes."""
    return (preview.turn_id, preview.message_id, preview.attempt) == (turn.id, turn.next_message_id, turn.attempt)
