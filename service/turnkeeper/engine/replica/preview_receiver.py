"""The text of messages that other replicas write, for the watchers of this one.

Which message is being written, and that no event has ended it, is read from the session's head and turn; then its
pieces go on one after the other as they come. One that leaves a gap has the stored ones read again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.engine.streaming.feed import Feed, Feeds
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.contract import PreviewStore, SessionStore
from turnkeeper.store.notifications import PreviewChunk

AT_A_TIME = 32
POLL = 1.0
"""Seconds between looks at the sessions whose text is watched, while pieces do not come by themselves."""

logger = logging.getLogger(__name__)


class PreviewReceiver:
    """One on every replica."""

    def __init__(
        self, store: PreviewStore, sessions: SessionStore, feeds: Feeds, *, holds: Callable[[SessionKey], bool]
    ) -> None:
        """`holds`: the session's turn runs here."""
        self._store = store
        self._sessions = sessions
        self._feeds = feeds
        self._holds = holds
        self.deaf = True
        """Pieces do not come by themselves."""

    def heard(self, piece: PreviewChunk) -> None:
        """A piece that another replica stored."""
        key = piece.session_key
        feed = self._feeds.get(key)
        if feed is None or not feed.text_watchers:
            return
        preview = feed.preview
        if preview is None or (preview.turn_id, preview.message_id) != (piece.turn_id, piece.message_id):
            known = feed.no_longer == (piece.message_id, piece.attempt)
        elif preview.attempt == piece.attempt and not preview.ours:
            known = preview.extend(piece.offset, piece.text)
        else:
            known = preview.attempt >= piece.attempt
        if not known:
            feed.no_longer = (piece.message_id, piece.attempt)
            feed.ask()

    async def run(self) -> None:
        """Look wherever a feed asks for it."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._feeds.asking.wait()
            if self.deaf:
                self._feeds.ask_all()
            self._feeds.asking.clear()
            asked = list(self._feeds.asked)
            self._feeds.asked.clear()
            for start in range(0, len(asked), AT_A_TIME):
                await asyncio.gather(*(self._look(key) for key in asked[start : start + AT_A_TIME]))

    async def _look(self, key: SessionKey) -> None:
        feed = self._feeds.get(key)
        if feed is None or not feed.text_watchers or self._holds(key):
            return
        try:
            preview = await self._current(key, feed)
            if preview is None:
                return
            for piece in await self._store.previews(
                key, message_id=preview.message_id, attempt=preview.attempt, after=preview.size
            ):
                preview.extend(piece.offset, piece.text)
        except ServiceUnavailable:
            feed.no_longer = ("", 0)
            logger.warning("the database does not answer; watchers wait for other replicas' text")
        except Exception:
            logger.exception(
                "a session cannot be read; its watchers wait for whole messages", extra={"session": key.session_id}
            )

    async def _current(self, key: SessionKey, feed: Feed) -> Preview | None:
        """The preview of the message that another replica writes now, None when there is none."""
        snapshot = await self._sessions.snapshot(key)
        preview = feed.preview
        if snapshot is None or (preview is not None and preview.ours and preview.counts() and not preview.over):
            return None
        turn, last_seq = snapshot.turn, snapshot.head.last_seq
        feed.heard(last_seq)
        if preview is not None and last_seq < preview.since:
            return None
        if turn is None or turn.state is not TurnState.RUNNING or not turn.attempt:
            return None
        if preview is None or preview.ours or not _is_of(preview, turn):
            return feed.begin_elsewhere(
                turn_id=turn.id, message_id=turn.next_message_id, attempt=turn.attempt, since=last_seq
            )
        preview.known = max(preview.known, last_seq)
        return None if preview.over else preview


def _is_of(preview: Preview, turn: Turn) -> bool:
    return (preview.turn_id, preview.message_id, preview.attempt) == (turn.id, turn.next_message_id, turn.attempt)
