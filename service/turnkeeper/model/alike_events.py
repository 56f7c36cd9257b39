"""Reads events that differ from one another in their text alone, as most servers send them, without a parse of each."""

from collections.abc import Callable
from typing import Final

import orjson

_BEFORE: Final = b"data: "
_BEHIND: Final = b"\n\n"
_ESCAPE: Final = b"\\"
_TRIES: Final = 8
"""Events that are compared in vain, at most: some servers change more than the text in each."""


class AlikeEvents:
    """Knows the bytes around the text of one event. An event with the same bytes around a string has nothing else.

    It may be used only between two events: the caller calls `forget` after anything but whole events of text alone.
    """

    def __init__(self, text_alone: Callable[[bytes], str | None]) -> None:
        """`text_alone` returns the text of an event that has nothing else, or None."""
        self._text_alone = text_alone
        self._head = self._tail = self._between = b""
        self._tries = _TRIES

    def forget(self) -> None:
        """Knows no event any more."""
        self._head = b""

    def learn(self, event: bytes) -> None:
        """Takes the bytes around the text of an event that has nothing else, up to the quotes of the text."""
        text = self._text_alone(event) if self._tries else None
        self.forget()
        if text is None:
            return
        self._tries -= 1
        head, _, tail = event.rpartition(orjson.dumps(text))
        other = f"{text}?"
        if head and self._text_alone(head + orjson.dumps(other) + tail) == other:  # so it is the text's place
            self._head, self._tail = _BEFORE + head + b'"', b'"' + tail + _BEHIND
            self._between = self._tail + self._head

    def text_of(self, data: bytes) -> tuple[str, int] | None:
        """Returns the text of whole events with the known bytes around it, and their number. None for other data."""
        head, tail = len(self._head), len(self._tail)
        if not head or len(data) <= head + tail or not (data.startswith(self._head) and data.endswith(self._tail)):
            return None
        strings = data[head:-tail].split(self._between)
        joined = b"".join(strings)
        if not all(strings):
            return None
        try:
            if _ESCAPE in joined:  # each by itself, as one that is cut behind an escape would take its quote
                text = "".join([orjson.loads(b'"%b"' % string) for string in strings])
            else:
                text = orjson.loads(b'"%b"' % joined)
        except orjson.JSONDecodeError:
            return None
        self._tries = _TRIES
        return text, len(strings)
