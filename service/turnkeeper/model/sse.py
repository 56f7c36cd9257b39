"""Reads server-sent events: bytes in, the data of whole events out."""

DONE = b"[DONE]"


class EventTooLong(ValueError):
    """A line or an event is longer than the reader allows."""


class EventReader:
    """Splits a byte stream into events, wherever the network cut it.

    It works on bytes: a character cut in two is whole again before it is decoded, and only a line feed ends a
    line (text that holds U+2028 is one line). Comments and every field but `data` are dropped. `[DONE]` counts as
    soon as its line is complete. An event without the empty line after it never counts.
    """

    def __init__(self, *, max_event_bytes: int) -> None:
        """`max_event_bytes` limits a line and an event."""
        self._max = max_event_bytes
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the data of each event that these bytes complete. Raises EventTooLong beyond `max_event_bytes`."""
        self._size += len(data)
        if b"\n" not in data:
            self._check_size()
            self._line.append(data)
            return []
        self._line.append(data)
        lines = b"".join(self._line).split(b"\n")
        rest = lines.pop()
        events = [event for line in lines if (event := self._take(line.rstrip(b"\r"))) is not None]
        self._line = [rest]
        self._size = len(rest) + sum(map(len, self._data))
        self._check_size()
        return events

    def _take(self, line: bytes) -> bytes | None:
        """Reads one line. Returns the event that it completes, None if it completes none."""
        if not line:
            event, self._data = self._data, []
            return b"\n".join(event) if event else None
        if not line.startswith(b"data:"):
            return None
        value = line[5:].removeprefix(b" ")
        if value == DONE and not self._data:
            return DONE
        self._data.append(value)
        return None

    def _check_size(self) -> None:
        """Raises EventTooLong beyond the limit."""
        if self._size > self._max:
            raise EventTooLong(f"more than {self._max} bytes without the end of an event")
