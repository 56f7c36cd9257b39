"""Reads pages of logs: each once for all watchers that need it, and the one behind it while it is sent."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.engine.streaming.log_reads import LogPage, PageRequest, SharedRead
from turnkeeper.engine.streaming.preview import TEXT_ENDING_KINDS
from turnkeeper.errors import SessionError
from turnkeeper.store.changeset import Head, LogEnd
from turnkeeper.store.contract import SessionLog
from turnkeeper.store.expired_cursors import check_not_trimmed, cursor_expired, log_restored
from turnkeeper.telemetry.metrics import Metrics


class LogReader:
    """Reads the pages of all logs that watchers of this replica read."""

    def __init__(self, store: SessionLog, metrics: Metrics) -> None:
        """`store` has the logs."""
        self._store = store
        self._metrics = metrics
        self._ahead = set[asyncio.Task[None]]()

    async def next_page(
        self,
        key: SessionKey,
        feed: Feed,
        position: StreamPosition,
        *,
        ahead: SharedRead | None,
        limit: int,
        head: Callable[[SessionKey], Awaitable[Head]],
    ) -> LogPage:
        """Returns the page behind the position: `ahead`, if that is it, otherwise one of `limit` events at most.

        `head` reads a session's head. Raises CursorExpired if the log was trimmed beyond the page's first event, or no
        longer has the events that the watcher was given: the database was restored.
        """
        self._metrics.replay("LOG")
        after = position.sequence
        page = await ahead.wait() if ahead is not None and ahead.request.after == after else None
        if page is None:
            page = await self._read_shared(key, feed, PageRequest(after, limit, feed.last_seq))
        if not await self._continues(page, key, feed, position):
            raise log_restored(await head(key))
        if page.events:
            feed.notify_grown(page.last, page.events[-1].changeset_id)
        else:
            # Only later events: the log was trimmed during the stream. No events at all: this primary may lag behind.
            check_not_trimmed(after, await head(key))
            if page.stored:
                raise cursor_expired(key.session_id, oldest=page.stored[0].sequence, head=feed.last_seq)
        return page

    def read_ahead(self, key: SessionKey, feed: Feed, page: LogPage) -> None:
        """Begins to read the page behind this one. If that fails, its watchers read the page themselves."""
        request = PageRequest(page.last, page.next_limit, feed.last_seq)
        page.ahead = feed.pages.get(request)
        if page.ahead is not None:
            page.ahead.join()
            return
        page.ahead = read = SharedRead(request)
        if page.batches is not None:
            read.join()

        async def run() -> None:
            with suppress(SessionError):
                await self._read(key, feed, read)

        task = asyncio.create_task(run(), context=Context())  # it is the work of no single call
        self._ahead.add(task)
        task.add_done_callback(self._ahead.discard)

    async def check_preview(self, key: SessionKey, feed: Feed, sequence: int) -> None:
        """Reads whether an event up to this number ended the feed's text, if that is not known."""
        preview = feed.preview
        if preview is None or not preview.must_check(sequence):
            return
        events = await self._store.events(
            key,
            after=preview.checked_through,
            limit=1,
            kinds=TEXT_ENDING_KINDS,
            turn_id=preview.turn_id,
            until=sequence,
        )
        preview.ended |= bool(events)
        preview.checked_through = max(preview.checked_through, sequence)

    async def _read_shared(self, key: SessionKey, feed: Feed, request: PageRequest) -> LogPage:
        """Reads a page, or gets it from another watcher that has it or is reading it."""
        shared = feed.pages.get(request)
        if shared is not None:
            shared.join()
            page = await shared.wait()
            if page is not None:
                return page
        return await self._read(key, feed, SharedRead(request))

    async def _read(self, key: SessionKey, feed: Feed, read: SharedRead) -> LogPage:
        after, limit, _ = read.request
        more = min(after, 1)  # the event before the page, too: it names the history
        with feed.pages.reading(read):
            return await read.read(lambda: self._store.events(key, after=after - more, limit=limit + more))

    async def _continues(self, page: LogPage, key: SessionKey, feed: Feed, position: StreamPosition) -> bool:
        """Returns False if this page of the log certainly continues another history than that of the position.

        A log that was found to end before the position may still have events behind its end: while a database is
        restored, its collections are of different times.
        """
        history, after = position.history, position.sequence
        if after and (page.history is None or after > feed.last_seq):
            return await self._store.holds(key, LogEnd(after, history))
        return len({page.history or "", history, ""}) < 3
