"""Reads an answer at the ends of its pauses by a timer, as long as there is plain text alone: no task wakes for it."""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.collected import Body
from turnkeeper.model.contract import ModelFailure
from turnkeeper.model.deadline_watch import DeadlineWatch
from turnkeeper.model.read_pauses import ReadPauses

PART_BYTES = 16 * 1024
"""Bytes of a body that are read without a pause for the rest of the loop."""

_End: TypeAlias = tuple[bytes, ModelFailure | None]


class TimedReads:
    """The pauses of one answer, and the reads at their ends that its task need not make."""

    def __init__(
        self,
        body: Body,
        reader: AnswerReader,
        watch: DeadlineWatch,
        pauses: ReadPauses,
        show: Callable[[str], bool] | None,
    ) -> None:
        """`show`: see `ModelRequest.show`. Without it, nothing is read here."""
        self._body = body
        self._reader = reader
        self._watch = watch
        self._pauses = pauses
        self._show = show
        self._loop = asyncio.get_running_loop()

    async def pause(self, size: int) -> _End:
        """Waits after a read of `size` bytes, reads what has come, shows its text, and waits again.

        Returns once there is something else to do: the bytes that were taken from the body and are not read yet, and
        the failure that the server reported, if any. The text before it is left to `new_text`.
        """
        seconds = self._seconds(size)
        if not seconds:
            return b"", None
        self._ended: asyncio.Future[_End] = self._loop.create_future()
        self._wait(seconds)
        try:
            return await self._ended
        finally:
            self._next.cancel()
            self._body.release()

    def _wait(self, seconds: float) -> None:
        """Leaves what arrives to the system for so long, then reads it."""
        self._body.hold()
        self._next: asyncio.Handle = self._loop.call_later(seconds, self._end_pause)

    def _seconds(self, size: int) -> float:
        """Returns how long to wait after a read of `size` bytes: until the next deadline at most."""
        return 0.0 if self._reader.done else min(self._pauses.after(size), self._watch.remaining())

    def _end_pause(self) -> None:
        """Lets the loop take what has come from the system: it looks once between two rounds of callbacks."""
        if self._body.release():
            self._next = self._loop.call_soon(self._look)
        else:
            self._read()

    def _look(self) -> None:
        self._next = self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Reads what has come. Pauses again, or ends the pause for good."""
        if self._ended.done():
            return
        try:
            data = self._body.collected() if self._show is not None else b""
            is_read = is_plain(data, self._reader)
            if is_read and self._take(data) and (seconds := self._seconds(len(data))):
                self._wait(seconds)
            else:
                self._ended.set_result((b"" if is_read else data, None))
        except ModelFailure as failed:
            self._ended.set_result((b"", failed))
        except Exception as error:  # noqa: BLE001 - the task gets it
            self._ended.set_exception(error)

    def _take(self, data: bytes) -> bool:
        """Reads the data, and shows its text. Returns False if no more text is wanted."""
        reader, tokens = self._reader, self._reader.tokens
        reader.feed(data)
        if reader.tokens > tokens:
            self._watch.token()
        text = reader.new_text()
        return not text or self._show is None or self._show(text)


def is_plain(data: bytes, reader: AnswerReader) -> bool:
    """Returns True for a few whole events, as nearly every read has them."""
    return 0 < len(data) <= PART_BYTES and not reader.size and data.endswith(b"\n\n")
