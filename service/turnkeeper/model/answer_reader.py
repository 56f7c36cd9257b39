"""Reads the body of an answer: bytes in, text as it grows, one answer at the end. No I/O, no clock."""

import json

from turnkeeper.model.alike_events import AlikeEvents
from turnkeeper.model.completion import Completion
from turnkeeper.model.contract import ModelAnswer, ModelFailure, ModelRequest
from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.openai_failure import event_failure, page_failure
from turnkeeper.model.sse import DONE, EventReader, EventTooLong
from turnkeeper.model.text_repair import decoded

_MAX_EVENT_BYTES = 2 * 1024 * 1024
"""Bytes of one event of a stream, or of an answer in one piece, at most; more fail the call."""

_PAGE_BYTES = 4 * 1024
"""Bytes that are kept of a body without events: it may be a page that tells why there is no answer."""


class AnswerReader:
    """Reads server-sent events, and JSON in one piece where a server sends no events.

    The answer is there after `[DONE]`, or when the body has ended in order after a finish reason. Methods that read
    raise ModelFailure; the text up to there is still returned by `new_text`.
    """

    def __init__(self, request: ModelRequest, *, max_answer_bytes: int, origin: str = "") -> None:
        """See `Completion`."""
        self.done = False
        """True after `[DONE]`: nothing that follows counts."""
        self._completion = Completion(request, max_answer_bytes=max_answer_bytes, origin=origin)
        self._events = EventReader(max_event_bytes=_MAX_EVENT_BYTES)
        self._alike = AlikeEvents(self._completion.text_alone)
        self._lead: bytes | None = b""
        self._json: list[bytes] | None = None
        self._page: bytes | None = b""
        self._size = 0

    @property
    def tokens(self) -> int:
        """Returns how many events brought output of the model; see `Completion.tokens`."""
        return self._completion.tokens

    @property
    def size(self) -> int:
        """Returns the bytes that wait to be read at once: of the event that has begun, or of JSON in one piece."""
        return self._events.size if self._json is None else self._size

    def feed(self, data: bytes) -> None:
        """Reads the next bytes of the body; ignores them after `[DONE]`."""
        if self.done:
            return
        if self._lead is not None:
            self._lead += data
            start = self._lead.removeprefix(b"\xef\xbb\xbf").lstrip()
            if not start or start in b"\xef\xbb\xbf":
                self._check(len(self._lead))
                return
            data, self._lead = self._lead, None
            self._json = [] if start.startswith((b"{", b"[")) else None
        if self._json is not None:
            self._json.append(data)
            self._size += len(data)
            self._check(self._size)
            return
        self._feed_events(data)

    def new_text(self) -> str:
        """Returns the text since the last call, often none."""
        return self._completion.new_text()

    def end(self) -> None:
        """Reads the orderly end of the body."""
        if self._json is not None:
            self._read_json(b"".join(self._json))
        if not self.done:
            self._end()
            if not self._completion.finished:
                raise page_failure(self._page or b"") if self._lead is None else failure(Reason.EMPTY)
            self.done = True

    def answer(self) -> ModelAnswer:
        """Returns the whole answer, once `done`."""
        return self._completion.finish()

    def _feed_events(self, data: bytes) -> None:
        """Reads the next bytes of a stream of events."""
        if (alike := self._alike.text_of(data)) is not None and self._completion.take_text(*alike):
            return
        try:
            events = self._events.feed(data)
        except EventTooLong:
            raise failure(Reason.MALFORMED) from None
        if events:
            self._page = None
        elif self._page is not None and len(self._page) < _PAGE_BYTES:
            self._page += data[:_PAGE_BYTES]
        are_texts = data.endswith(b"\n\n") and bool(events)
        for event in events:
            if event == DONE:
                self.done = True
                self._end()
                return
            are_texts = self._completion.take(event) and are_texts
        if are_texts:
            self._alike.learn(events[-1])
        else:
            self._alike.forget()

    def _end(self) -> None:
        """Ends the answer. Raises ModelFailure for an error that the server reported beside it, if there is none."""
        self._completion.end()
        if self._events.error and not self._completion.finished:
            raise event_failure({"error": self._events.error.decode(errors="replace").strip()})

    def _read_json(self, body: bytes) -> None:
        """Reads an answer in one piece: one JSON value, or one in each line, beside lines of a stream."""
        try:
            value = decoded(body.removeprefix(b"\xef\xbb\xbf"))
        except ModelFailure:
            for line in body.splitlines(keepends=True):
                self._feed_events(line if not line.lstrip().startswith(b"{") else b"data: " + line.strip() + b"\n\n")
            return
        for chunk in value if isinstance(value, list) else []:
            self._completion.take(json.dumps(chunk).encode())
        if not isinstance(value, list):
            self._completion.take(body)

    def _check(self, size: int) -> None:
        """Raises ModelFailure if `size` is beyond the limit."""
        if size > _MAX_EVENT_BYTES:
            raise failure(Reason.MALFORMED)
