"""Reads server-sent events: bytes in, the data of whole events out."""

DONE = b"[DONE]"
_MARK = b"\xef\xbb\xbf"
"""The byte order mark, which may stand before the first line."""


class EventTooLong(ValueError):
    """A line or an event is longer than the reader allows."""


class EventReader:
    """Splits a byte stream into events as the WHATWG standard does, wherever the network cut it.

    CR, LF and CRLF end a line, nothing else (text that holds U+2028 is one line); a byte order mark may stand before
    the first. Comments and every field but `data` are dropped, and an event whose data is empty, too. An event without
    the empty line after it never counts. `[DONE]` counts as soon as its line is complete, spaces around it or not.

    It works on bytes: a character cut in two is whole again before it is decoded.
    """

    def __init__(self, *, max_event_bytes: int) -> None:
        """`max_event_bytes` limits a line and an event."""
        self._max = max_event_bytes
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._held = 0
        self.size = 0
        """Bytes of the line and the event that have begun."""
        self.error = b""
        """The data of the last event of the type `error`. Some servers report a failure there in a form of their own.

        llama.cpp up to 2025 writes a field of that name in place of an event.
        """
        self._is_error = False
        self._after_cr = False
        self._begun = False

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the data of each event that these bytes complete. Raises EventTooLong beyond `max_event_bytes`."""
        if not data:
            return []
        if self.size == 0 and not self._is_error and data.endswith(b"\n\n") and len(data) <= self._max:
            events = _one_line_events(data)
            if events is not None:
                self._after_cr, self._begun = False, True
                return events
        if self._after_cr:
            self._after_cr = False
            data = data.removeprefix(b"\n")  # the second half of CRLF
            if not data:
                return []
        self.size += len(data)
        self._line.append(data)
        if b"\n" not in data and b"\r" not in data:
            self._check_size()
            return []
        self._after_cr = data.endswith(b"\r")
        lines = b"".join(self._line).splitlines()  # of bytes: at CR, LF and CRLF alone
        rest = b"" if data.endswith((b"\n", b"\r")) else lines.pop()
        if not self._begun:
            self._begun = True
            lines[0] = lines[0].removeprefix(_MARK)
        events = [event for line in lines if (event := self._take(line)) is not None]
        self._line = [rest] if rest else []
        self.size = len(rest) + self._held
        self._check_size()
        return events

    def _take(self, line: bytes) -> bytes | None:
        """Reads one line. Returns the event that it completes, None if it completes none."""
        if not line:
            is_error, self._is_error = self._is_error, False
            if not self._data:
                return None
            event, self._data, self._held = b"\n".join(self._data), [], 0
            if is_error:
                self.error = event
            return event if event.strip() and not (is_error and not event.lstrip().startswith(b"{")) else None
        if line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            if value.strip() == DONE and not self._data:
                return DONE
        elif line == b"data":
            value = b""
        else:
            self._take_other(line)
            return None
        self._data.append(value)
        self._held += len(value) + 1
        return None

    def _take_other(self, line: bytes) -> None:
        """Reads a line of another field."""
        name, _, value = line.partition(b":")
        if name == b"error":
            self.error = value
        elif name == b"event":
            self._is_error = value.strip() == b"error"

    def _check_size(self) -> None:
        """Raises EventTooLong beyond the limit."""
        if self.size > self._max:
            raise EventTooLong(f"more than {self._max} bytes without the end of an event")


def _one_line_events(data: bytes) -> list[bytes] | None:
    """Returns the events of whole events of one line each, as nearly every read has them; None if one is different."""
    events: list[bytes] = []
    if b"\r" in data:
        return None
    for event in data[:-2].split(b"\n\n"):
        if b"\n" in event or not (event.startswith(b"data: {") or event == b"data: [DONE]"):
            return None
        events.append(event[6:])
    return events
