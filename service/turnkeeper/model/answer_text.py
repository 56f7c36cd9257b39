"""The text of an answer as its parts arrive."""

from collections.abc import Callable

from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.text_repair import split_half, whole


class AnswerText:
    """Takes parts of a text, or all of it again and again; returns what is new. Its characters are always whole."""

    def __init__(self, *, spend: Callable[[int], None]) -> None:
        """`spend` counts bytes of the answer, and raises ModelFailure beyond its limit."""
        self._spend = spend
        self._parts: list[str] = []
        self._returned = 0
        self._half = ""
        self._by_messages = False
        self._repeats: bool | None = None
        self._joined, self._joined_parts = "", 0

    def __bool__(self) -> bool:
        """Returns True if there is any text."""
        return bool(self._parts)

    def __str__(self) -> str:
        """Returns all of the text. Joins only what is new since the last call."""
        if self._joined_parts < len(self._parts):
            self._joined += "".join(self._parts[self._joined_parts :])
            self._joined_parts = len(self._parts)
        return self._joined

    def new(self) -> str:
        """Returns the text since the last call, often none."""
        text = "".join(self._parts[self._returned :])
        self._returned = len(self._parts)
        return text

    def add(self, content: str) -> None:
        """Adds the next part; a half of a character waits for its other half."""
        if content.isascii() and not self._half:
            self._spend(len(content))
            self._parts.append(content)
            return
        self._spend(len(content))  # before any work on it: a character has a byte at least
        content, self._half = split_half(self._half + content)
        if content:
            self._add_whole(content)

    def add_new(self, content: str, *, last: bool) -> None:
        """Adds what is new in the text of a message. Raises ModelFailure if it contradicts what is there.

        Some servers send all of the text each time, and some its next part; the last message often has all of it.
        A message beside deltas has all of it.
        """
        so_far = str(self) + self._half
        if so_far and content:
            content = self._new_in(content, so_far, last=last)
        elif content:
            self._by_messages = True
        if content:
            self.add(content)

    def end(self) -> None:
        """Adds U+FFFD for a character whose other half has not arrived."""
        half, self._half = self._half, ""
        if half:
            self._add_whole(half)

    def _new_in(self, content: str, so_far: str, *, last: bool) -> str:
        """Returns what is new in a message's text after `so_far`."""
        grows = content.startswith(so_far)
        if not self._by_messages:
            return content[len(so_far) :] if grows else ""
        if self._repeats is None and (content != so_far or last):
            self._repeats = grows
        if not self._repeats:
            return content
        if not grows:
            raise failure(Reason.MALFORMED)
        return content[len(so_far) :]

    def _add_whole(self, content: str) -> None:
        """Adds a text whose last character is not cut. Its characters are counted already."""
        text = whole(content)
        self._spend(len(text.encode()) - len(content))
        self._parts.append(text)
