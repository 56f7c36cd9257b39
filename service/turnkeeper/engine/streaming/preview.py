"""The text of a message while it is being written: chunks at byte offsets, never cut inside a character.

Watchers see the first text at once, later text once an interval: all of them then see the same, and can share its
bytes.
"""

import asyncio
import math
from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from operator import attrgetter
from typing import Final, NamedTuple

from turnkeeper.store.changeset import StoredEvent

CHUNK_BYTES: Final = 160
"""Memory of a chunk beside its text: its objects."""
READER_FIRST: Final = 0.002
"""Seconds that text is shown late, so that the reader of the model, which comes at the same time, adds to it first."""
_MILLISECOND: Final = 0.001
TEXT_ENDING_KINDS: Final = frozenset(
    {"message_completed", "attempt_failed", "attempt_superseded", "turn_failed", "turn_retried", "turn_cancelled"}
)
"""The kinds of events that end the text of a turn's message: the text is whole then, or no longer counts."""
MOST_KEPT: Final = 4096
"""Bytes of several chunks that are shown at once, and then kept together, at most."""


class Chunk(NamedTuple):
    """A chunk of a message's text in UTF-8."""

    offset: int
    """Bytes of the text before it."""
    text: bytes


_NO_CHUNK: Final = Chunk(-1, b"")


class Preview:
    """The text of the message that a turn's owner is writing now, on this replica or on another."""

    def __init__(
        self,
        notify: Callable[[], None],
        *,
        turn_id: str,
        message_id: str,
        attempt: int,
        started_after: int,
        lease_held: Callable[[], bool],
    ) -> None:
        """`notify` is called when new text is shown. The other parameters become the attributes of the same names."""
        self._notify = notify
        self.turn_id = turn_id
        self.message_id = message_id
        self.attempt = attempt
        self.started_after = started_after
        """The number of the log's last event when the message began."""
        self.lease_held = lease_held
        """Returns True while the owner holds the turn's lease."""
        self.ended = False
        """The log has an event that ends the message, though the owner may not know it yet.

        If the answer to the owner's commit is lost, a watcher may read that event before the owner knows of it.
        """
        self.closed = False
        """The owner waits for no further text of the message: `append` is not called any more."""
        self.local = True
        """The turn runs on this replica."""
        self.checked_through = started_after
        """Up to this event it is known whether one of them ends the message: `ended` is True if so."""
        self._published = 0
        self._pending: Chunk | None = None
        self.size = 0
        """Bytes of the text so far."""
        self.shown = 0
        """Bytes of the text that watchers may see."""
        self.chunks: list[Chunk] = []
        self.interval = 0.0
        """Seconds between two times at which new text is shown, at least; 0: each chunk as it comes."""
        self._last_shown = _NO_CHUNK
        self._shown_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Returns the event loop. To ask for it with every delta costs a system call each."""
        return asyncio.get_running_loop()

    @property
    def valid(self) -> bool:
        """Returns True while watchers may see the text."""
        return not self.ended and self.lease_held()

    @property
    def held(self) -> int:
        """Returns about how many bytes of memory the text takes."""
        return self.size + CHUNK_BYTES * len(self.chunks)

    def must_check(self, sequence: int) -> bool:
        """Returns True if events up to this number, which a watcher got elsewhere, may have ended the text."""
        return sequence > self.checked_through and self.local and not self.ended

    def apply(self, event: StoredEvent) -> None:
        """Ends the text if this event ends its message. The owner may not know yet that the event is stored."""
        if self.turn_id == event.turn_id and self.started_after < event.sequence:
            self.ended = self.ended or event.kind in TEXT_ENDING_KINDS
        if self.checked_through + 1 == event.sequence:
            self.checked_through = event.sequence

    def append(self, text: str) -> None:
        """Adds the next text of a message that this replica writes; watchers see it within an interval."""
        self._add(text.encode())

    def append_unless_closed(self, text: str) -> bool:
        """Adds the next text as `append` does. Returns False if the owner no longer waits for any."""
        if self.closed:
            return False
        self._add(text.encode())
        return not self.closed

    def close(self) -> None:
        """Ends the text: the model call that writes it has ended, or is left behind."""
        self.closed = True

    def extend(self, offset: int, text: str) -> bool:
        """Adds another replica's chunk, without the bytes that are here already. Returns False if it leaves a gap."""
        data = text.encode()[max(0, self.size - offset) :]
        if offset > self.size:
            return False
        if data:
            self._add(data)
        return True

    def next_chunk(self, *, most: int) -> Chunk | None:
        """Returns the next chunk to publish to other replicas, of at most `most` bytes; None if there is none.

        Returns the same chunk until `mark_published`, so that published chunks always fit together.
        """
        if self._pending is None and self._published < self.size:
            self._pending = Chunk(*self.text_from(self._published, most=most))
        return self._pending

    def mark_published(self) -> None:
        """Records that the chunk of `next_chunk` is stored."""
        if self._pending is not None:
            self._published = self._pending.offset + len(self._pending.text)
            self._pending = None

    def text(self) -> str:
        """Returns the whole text so far."""
        return b"".join(chunk.text for chunk in self.chunks).decode()

    def patience(self) -> float:
        """Returns the seconds until further text is shown: text that is added earlier is seen no earlier."""
        if not self.interval:
            return 0.0
        seconds = self._shown_at + self.interval - self._loop.time()
        return seconds if seconds > 0 else 0.0

    def uncover(self) -> None:
        """Lets watchers see all of the text, when they are notified for another reason."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.shown < self.size:
            self._show_to(self.size)
            self._shown_at = _common_time(self._loop.time(), self.interval)

    def _show_to(self, size: int) -> None:
        """Moves the end of what watchers see. Nearly all of them lack the text since the last time, and that alone."""
        last, start, self.shown = self.chunks[-1], self.shown, size
        if last.offset != start:
            is_short = size - start <= MOST_KEPT
            last = Chunk(*self._text_from(start, most=MOST_KEPT)) if is_short else _NO_CHUNK
        self._last_shown = last

    def shown_last(self, offset: int) -> bytes:
        """Returns the text that was shown last if it begins at this byte; none otherwise."""
        last = self._last_shown
        return last.text if last.offset == offset else b""

    def text_from(self, offset: int, *, most: int, until: int | None = None) -> tuple[int, bytes]:
        """Returns the text from a byte on, whole characters of at most `most` bytes, and the byte where it begins.

        It begins earlier than `offset` if that byte is inside a character. It ends at the byte `until`, at the latest.
        """
        last = self._last_shown
        if last.offset == offset and until == self.shown and len(last.text) <= most:
            return last
        return self._text_from(offset, most=most, until=until)

    def _text_from(self, offset: int, *, most: int, until: int | None = None) -> tuple[int, bytes]:
        first = max(0, len(self.chunks) - 1)  # nearly always: a watcher lacks the last chunk
        if self.chunks and self.chunks[first].offset > offset:
            first = max(0, bisect_right(self.chunks, offset, key=attrgetter("offset")) - 1)
        start = self.chunks[first].offset if self.chunks else 0
        text: list[bytes] = []
        left = offset - start + most
        for number in range(first, len(self.chunks)):
            text.append(self.chunks[number].text)
            left -= len(text[-1])
            if left <= 0:
                break
        data = b"".join(text)
        return characters_from(
            data if until is None else data[: max(0, until - start)], offset - start, most=most, base=start
        )

    def _add(self, data: bytes) -> None:
        """Adds a chunk at the end. Shows it now if the interval is over, otherwise then."""
        self.chunks.append(Chunk(self.size, data))
        self.size += len(data)
        if not self.interval:
            self._show_to(self.size)
            self._notify()
            return
        due = self._shown_at + self.interval
        if self._loop.time() >= due:
            self._show()
        elif self._timer is None:
            self._timer = self._loop.call_at(due + READER_FIRST, self._show)

    def _show(self) -> None:
        """Shows all of the text, and notifies the watchers."""
        self.uncover()
        self._notify()


def _common_time(now: float, interval: float) -> float:
    """Returns the last of the times up to now, an interval apart, at which the texts of all streams are shown.

    In whole milliseconds. A loop that is woken for all streams at once has less work than one that is woken for a few.
    """
    return round((now + _MILLISECOND) // interval * interval, 3) if interval else now


def characters_from(text: bytes, offset: int, *, most: int, base: int = 0) -> tuple[int, bytes]:
    """Returns whole characters of UTF-8 from `offset` on, at most `most` bytes, after the byte where they begin.

    They begin earlier than `offset` if that byte is inside a character. `base` is added to where they begin.
    """
    while 0 < offset < len(text) and text[offset] & 0xC0 == 0x80:
        offset -= 1
    return base + offset, whole_characters(text[offset : offset + most])


def whole_characters(data: bytes) -> bytes:
    """Returns `data` without a character that is cut off at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        width = 1 if byte < 0x80 else 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4
        return data if width <= back else data[:-back]
    return data
