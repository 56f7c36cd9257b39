"""Reads an answer at the ends of its pauses by a timer, as long as there is plain text alone: no task wakes for it."""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.collected import Body
from turnkeeper.model.contract import ModelFailure
from turnkeeper.model.deadline_watch import DeadlineWatch
from turnkeeper.model.read_pauses import ReadPauses
from turnkeeper.model.read_ticks import ReadTicks

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
        ticks: ReadTicks | None = None,
    ) -> None:
        """`show`: see `ModelRequest.show`. Without it, nothing is read here.

        `ticks` ends the pauses of this answer together with those of others.
        """
        self._body = body
        self._reader = reader
        self._watch = watch
        self._pauses = pauses
        self._show = show
        self._ticks = ticks or ReadTicks()
        self._at = 0

    async def pause(self, size: int) -> _End:
        """Waits after a read of `size` bytes, reads what has come, shows its text, and waits again.

        Returns once there is something else to do: the bytes that were taken from the body and are not read yet, and
        the failure that the server reported, if any. The text before it is left to `new_text`.
        """
        seconds = self._seconds(size)
        if not seconds:
            return b"", None
        self._ended: asyncio.Future[_End] = asyncio.get_running_loop().create_future()
        self._wait(seconds)
        try:
            return await self._ended
        finally:
            self._ticks.remove(self, self._at)
            self._body.release()

    def _wait(self, seconds: float) -> None:
        """Leaves what arrives to the system for so long, then reads it."""
        self._body.hold()
        self._at = self._ticks.add(self, seconds)

    def _seconds(self, size: int) -> float:
        """Returns how long to wait after a read of `size` bytes: until the next deadline at most."""
        return 0.0 if self._reader.done else min(self._pauses.after(size), self._watch.remaining())

    def release(self) -> bool:
        """Lets the loop take what has come from the system. Returns False if it has it already."""
        try:
            return self._body.release()
        except OSError:
            return False  # the connection has broken: the next read raises its error

    def read(self) -> None:
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
