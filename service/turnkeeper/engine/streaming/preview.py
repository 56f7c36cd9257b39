"""The text of a message while it is written: pieces at byte offsets, never cut inside a character."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a message's text: where its UTF-8 bytes begin, and the piece."""

    offset: int
    text: bytes


class Preview:
    """The text of the message that a turn's owner is writing now, here or on another replica.

    `since` is the number of the last event when it began; `counts` says whether its owner still holds the lease.
    `over`: the log holds an event that ends it, though its owner may not know yet. `ours`: the turn runs here.
    `known`: no event up to this number ends it, or `over` says so. Even of its own message a replica may hear last:
    when the answer to a commit is lost, others read the log first.
    """

    def __init__(
        self,
        notify: Callable[[], None],
        *,
        turn_id: str,
        message_id: str,
        attempt: int,
        since: int,
        counts: Callable[[], bool],
    ) -> None:
        self._notify = notify
        self.turn_id = turn_id
        self.message_id = message_id
        self.attempt = attempt
        self.since = since
        self.counts = counts
        self.over = False
        self.ours = True
        self.known = since
        self._shared = 0
        self._pending: Chunk | None = None
        self.size = 0
        self.chunks: list[Chunk] = []

    @property
    def stands(self) -> bool:
        """It may be shown."""
        return not self.over and self.counts()

    def append(self, text: str) -> None:
        self._add(text.encode())

    def extend(self, offset: int, text: str) -> bool:
        """Go on with a piece of another replica's; what is there already is left out. False: it leaves a gap."""
        data = text.encode()[max(0, self.size - offset) :]
        if offset > self.size:
            return False
        if data:
            self._add(data)
        return True

    def unshared(self, *, most: int) -> Chunk | None:
        """The next piece for other replicas, the same one until it was `shared`: they must fit together."""
        if self._pending is None and self._shared < self.size:
            self._pending = Chunk(*self.beyond(self._shared, most=most))
        return self._pending

    def shared(self) -> None:
        """The piece is stored."""
        if self._pending is not None:
            self._shared = self._pending.offset + len(self._pending.text)
            self._pending = None

    def text(self) -> str:
        return b"".join(chunk.text for chunk in self.chunks).decode()

    def beyond(self, offset: int, *, most: int) -> tuple[int, bytes]:
        """From this byte on: where the piece begins, and whole characters of at most `most` bytes.

        It begins earlier than asked where that byte is inside a character.
        """
        pieces: list[bytes] = []
        start = self.size
        for chunk in reversed(self.chunks):
            if start <= offset:
                break
            pieces.append(chunk.text)
            start = chunk.offset
        return piece_of(b"".join(reversed(pieces)), offset - start, most=most, base=start)

    def _add(self, data: bytes) -> None:
        self.chunks.append(Chunk(self.size, data))
        self.size += len(data)
        self._notify()


def piece_of(text: bytes, offset: int, *, most: int, base: int = 0) -> tuple[int, bytes]:
    """Whole characters of UTF-8 from `offset` on, at most `most` bytes; `base` is added to where they begin."""
    while 0 < offset < len(text) and text[offset] & 0xC0 == 0x80:
        offset -= 1
    return base + offset, whole_characters(text[offset : offset + most])


def whole_characters(data: bytes) -> bytes:
    """`data` without a character that is cut off at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        width = 1 if byte < 0x80 else 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4
        return data if width <= back else data[:-back]
    return data
