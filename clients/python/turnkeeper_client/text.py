"""Assembles the exact text of messages from deltas and whole messages."""

from dataclasses import dataclass, field
from typing import Self

from turnkeeper_client.delivered import PartialMessages
from turnkeeper_client.pb.v1.event_pb2 import DELTA_KIND_TEXT, Event, MessageCompleted
from turnkeeper_client.screen import Screen


class TextPiece(str):
    """Text of a message that is new to the reader. `print(piece, end="")` shows the message exactly.

    `offset` is where it begins, in UTF-8 bytes of that message. `restart`: what was shown of the message before it
    does not count any more, because another attempt writes it anew; begin with this text. It is empty where that
    attempt's message has no text.

    `print` takes `str(piece)`. On a terminal that first erases what does not count, and has an escape for each control
    character of the model. Elsewhere, and where nothing can be erased, a line tells that the answer begins anew. All
    else (`+`, `join`, an f-string, a slice, a comparison) has the text alone.
    """

    __slots__ = ("message_id", "offset", "printed", "restart")

    message_id: str
    offset: int
    restart: bool
    printed: str

    def __new__(
        cls, text: str, *, message_id: str, offset: int, restart: bool = False, printed: str | None = None
    ) -> Self:
        instance = super().__new__(cls, text)
        instance.message_id = message_id
        instance.offset = offset
        instance.restart = restart
        instance.printed = text if printed is None else printed
        return instance

    def __str__(self) -> str:
        return self.printed

    def __format__(self, specification: str) -> str:
        return format(self + "", specification)


@dataclass(slots=True)
class _Text:
    """The text of one message as far as it is known; `begin` is its first byte's offset."""

    attempt: int = 0
    begin: int = 0
    data: bytearray = field(default_factory=bytearray)
    complete: bool = False


class TextAssembler:
    """The exact text of a session's messages, from its events in order, repeated or not.

    The texts of a message that `add` returned, joined from the last one with `restart`, are the message's text once
    it is complete, however often a stream was cut, resumed or repeated. A message without deltas arrives as one text.
    """

    def __init__(self) -> None:
        self._partial_messages = PartialMessages()
        self._texts: dict[str, _Text] = {}
        # The message that each turn's model is writing, and the turns whose shown text no longer counts.
        self._writing: dict[str, str] = {}
        self._withdrawn: set[str] = set()
        self._last = ""
        self._screen = Screen()

    def add(self, event: Event) -> TextPiece | None:
        """Adds one event. Returns the text that is new with it, or None."""
        if event.HasField("content_delta"):
            rest = self._partial_messages.rest(event) if event.content_delta.kind == DELTA_KIND_TEXT else None
            return self._extend(rest) if rest is not None else None
        self._partial_messages.settle(event)
        match event.WhichOneof("payload"):
            case "message_completed":
                return self._complete(event.turn_id, event.message_completed)
            case "attempt_failed" | "attempt_superseded" | "turn_retried":
                self._withdraw(event.turn_id)
        return None

    def text(self, message_id: str = "") -> str:
        """Returns the known text of a message, by default of the one that was written last."""
        known = self._texts.get(message_id or self._last)
        return known.data.decode() if known else ""

    def is_complete(self, message_id: str = "") -> bool:
        """Returns True if the whole text of the message is known."""
        known = self._texts.get(message_id or self._last)
        return known is not None and known.complete

    def _extend(self, event: Event) -> TextPiece:
        delta = event.content_delta
        text = self._texts.get(delta.message_id)
        if text is None or text.attempt != delta.attempt or self._writing.get(event.turn_id) != delta.message_id:
            # Another message without a restart: the one before it is whole, though its end may be left out here.
            if text is not None or delta.restarts:
                self._withdraw(event.turn_id)
            if delta.restarts:
                self._withdrawn.add(event.turn_id)
            text = _Text(attempt=delta.attempt, begin=delta.offset)
            self._texts[delta.message_id] = text
            self._writing[event.turn_id] = delta.message_id
        text.data += delta.text.encode()
        self._last = delta.message_id
        return self._next_text(event.turn_id, delta.text, delta.message_id, delta.offset)

    def _complete(self, turn_id: str, message: MessageCompleted) -> TextPiece | None:
        """Replaces the partial text by the whole one. Returns the text that is new, or None."""
        if self.is_complete(message.message_id):
            return None
        whole = "".join(part.text for part in message.content).encode()
        known = self._texts.get(message.message_id) if self._writing.get(turn_id) == message.message_id else None
        shown = known.begin + len(known.data) if known else 0
        if known is None or whole[known.begin : shown] != known.data:
            self._withdraw(turn_id)
            shown = 0
        self._texts[message.message_id] = _Text(data=bytearray(whole), complete=True)
        self._writing.pop(turn_id, None)
        self._last = message.message_id
        if len(whole) == shown and turn_id not in self._withdrawn:
            return None
        return self._next_text(turn_id, whole[shown:].decode(), message.message_id, shown)

    def _withdraw(self, turn_id: str) -> None:
        """Drops the message that the turn's model was writing."""
        message_id = self._writing.pop(turn_id, None)
        if message_id is None:
            return
        if self._texts.pop(message_id).data:
            self._withdrawn.add(turn_id)

    def _next_text(self, turn_id: str, text: str, message_id: str, offset: int) -> TextPiece:
        restart = turn_id in self._withdrawn
        self._withdrawn.discard(turn_id)
        printed = self._screen.added(text, message_id, restart=restart)
        return TextPiece(text, message_id=message_id, offset=offset, restart=restart, printed=printed)
