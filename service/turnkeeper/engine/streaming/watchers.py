"""Opens watchers of sessions, and holds what they share."""

import asyncio
import random
import time
from collections.abc import Callable

from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.batch_builder import BatchBuilder, PreviewCodec
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.engine.streaming.log_reader import LogReader
from turnkeeper.engine.streaming.stream_end import StreamTimes
from turnkeeper.engine.streaming.wakeups import DeadlineTimers
from turnkeeper.engine.streaming.watcher import Watcher
from turnkeeper.errors import SessionNotFound
from turnkeeper.store.changeset import Head
from turnkeeper.store.contract import SessionLog
from turnkeeper.telemetry.metrics import Metrics


class Watchers:
    """Opens watchers, one for each stream, and holds what they share."""

    def __init__(
        self,
        store: SessionLog,
        feeds: Feeds,
        codec: PreviewCodec,
        *,
        metrics: Metrics,
        times: StreamTimes,
        rng: random.Random,
    ) -> None:
        """`rng` spreads the ends of streams."""
        self.store = store
        self.feeds = feeds
        self.reader = LogReader(store, metrics)
        self.builder = BatchBuilder(codec)
        self.metrics = metrics
        self.keep_alive = times.keep_alive
        self.timers = DeadlineTimers()
        self.clock: Callable[[], float] = time.monotonic
        """The event loop's, once a watcher was opened: to ask for the loop costs a system call."""
        self._times = times
        self._rng = rng

    def open(self, key: SessionKey, *, caches_turns: bool = False) -> Watcher:
        """Returns a watcher of this session. It misses no event from now on; the caller closes it by a `with` block.

        `caches_turns`: it can return turns of the session without a read.
        """
        self.clock = asyncio.get_running_loop().time
        ends_at = self._times.planned_end(self.clock(), self._rng)
        return Watcher(self, key, ends_at=ends_at, caches_turns=caches_turns)

    async def head(self, key: SessionKey) -> Head:
        """Returns the session's head. Raises SessionNotFound if there is certainly no such session."""
        stored = await self.store.session(key)
        if stored is None:
            async with self.store.linearizable():
                stored = await self.store.session(key)
        if stored is None:
            raise SessionNotFound(session_id=key.session_id)
        return stored[1]
