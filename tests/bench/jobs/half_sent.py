"""Sends requests whose bodies never end: raw HTTP/2 frames, which no client library would send.

Each stream announces a message of nearly 4 MiB, and sends all of it that the server's windows allow but the last byte.
"""

import asyncio
import struct
from typing import Any, Final, cast

from tests.bench.runner import Channels

MESSAGE: Final = (4 << 20) - 1024
"""Bytes of the message that is announced, below the most that the server takes."""
_PATH: Final = b"/turnkeeper.v1.ChatService/SendMessage"
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_INITIAL_WINDOW, _MOST_STREAMS = 0x4, 0x3
_WINDOW: Final = 65_535
"""The window of a connection, and of a stream until the server's settings have come."""
_FRAME: Final = 16_384
"""Bytes of a frame, at most."""
_FILLING: Final = b"x" * _FRAME
_RATE: Final = 200 << 20
"""Bytes a second of all connections."""
_GRANTED: Final = 0.05
"""Seconds from one share of them to the next."""
_kept: Final[list["HalfSent"]] = []


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Returns a frame of HTTP/2."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def _text(value: bytes) -> bytes:
    """Returns a text of a header, after its length: an integer with a prefix of seven bits."""
    if len(value) < 127:
        return bytes((len(value),)) + value
    rest, length = len(value) - 127, bytes((127,))
    while rest >= 128:
        length += bytes((rest % 128 + 128,))
        rest //= 128
    return length + bytes((rest,)) + value


def headers(path: bytes, token: str = "") -> bytes:
    """Returns a request's headers, each as a literal that is neither indexed nor compressed."""
    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": path,
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    if token:
        fields[b"authorization"] = f"Bearer {token}".encode()
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


class Budget:
    """What all connections together may still send: `left` now, and `most` in all."""

    def __init__(self, most: int) -> None:
        self.left = 0
        self.most = most

    def grant(self, size: int) -> None:
        """Lets so many further bytes be sent, if there are so many in all."""
        size = min(size, self.most)
        self.most -= size
        self.left += size


class HalfSent(asyncio.Protocol):
    """One connection of an attacker: opens its streams, sends what it may, and keeps all of it open."""

    def __init__(self, streams: int, budget: Budget, token: str = "") -> None:
        self.opened = self.ended = self.sent = 0
        self.closed = False
        self._most = streams
        self._budget = budget
        self._token = token
        self._received = b""
        self._initial = self._connection = _WINDOW
        self._windows: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(_PREFACE + frame(_SETTINGS, 0, 0))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= 9:
            length = int.from_bytes(self._received[:3])
            if len(self._received) < 9 + length:
                break
            kind, flags, stream = struct.unpack("!BBI", self._received[3:9])
            payload, self._received = self._received[9 : 9 + length], self._received[9 + length :]
            self._take(kind, flags, stream & 0x7FFFFFFF, payload)
        self.send()

    def send(self) -> None:
        """Sends a frame on each stream in turn, until a window, the budget or the socket is full."""
        sending = True
        while sending and not self._paused and not self.closed:
            sending = False
            for stream, left in self._left.items():
                size = min(_FRAME, left, self._windows[stream], self._connection, self._budget.left)
                if size <= 0 or self._paused:
                    continue
                begin = struct.pack("!BI", 0, MESSAGE) if left == 5 + MESSAGE - 1 else b""
                if size < len(begin):
                    continue
                self._transport.write(frame(_DATA, 0, stream, begin + _FILLING[: size - len(begin)]))
                self._left[stream] -= size
                self._windows[stream] -= size
                self._connection -= size
                self._budget.left -= size
                self.sent += size
                sending = True

    def close(self) -> None:
        """Closes the connection, and with it all streams."""
        self._transport.abort()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._set(dict(struct.iter_unpack("!HI", payload)))
        elif kind == _PING and not flags & _ACK:
            self._transport.write(frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            size = int.from_bytes(payload) & 0x7FFFFFFF
            if not stream:
                self._connection += size
            elif stream in self._windows:
                self._windows[stream] += size
        elif (kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM)) and stream in self._left:
            self.ended += 1
            del self._left[stream], self._windows[stream]

    def _set(self, settings: dict[int, int]) -> None:
        """Takes the server's settings; the first ones let the streams begin."""
        window = settings.get(_INITIAL_WINDOW, self._initial)
        self._windows = {stream: left + window - self._initial for stream, left in self._windows.items()}
        self._initial = window
        self._transport.write(frame(_SETTINGS, _ACK, 0))
        if self.opened:
            return
        for number in range(min(self._most, settings.get(_MOST_STREAMS, self._most))):
            stream = 2 * number + 1
            self._transport.write(frame(_HEADERS, _END_HEADERS, stream, headers(_PATH, self._token)))
            self._windows[stream], self._left[stream] = self._initial, 5 + MESSAGE - 1
        self.opened = len(self._left)


async def send_halves(
    _channels: Channels,
    *,
    address: str,
    connections: int,
    streams: int,
    most_bytes: int,
    seconds: float,
    token: str = "",
) -> dict[str, Any]:
    """Opens the connections and sends for so long, `most_bytes` at most. They stay open until `drop_halves`.

    All of them together send 200 MiB a second at most, so that their core has room for those who read meanwhile.
    `token`: the credential of their requests; empty without one.

    Returns the bytes `sent`, and how many streams were `opened`, were `ended` by the server, and connections `closed`.
    """
    host, _, port = address.rpartition(":")
    budget = Budget(most_bytes)
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        _, attacker = await loop.create_connection(lambda: HalfSent(streams, budget, token), host, int(port))
        _kept.append(attacker)
    for _ in range(round(seconds / _GRANTED)):
        budget.grant(round(_RATE * _GRANTED))
        _kept.append(_kept.pop(0))  # another one is the first to send
        for attacker in _kept:
            attacker.send()
        await asyncio.sleep(_GRANTED)
    return {
        "sent": sum(attacker.sent for attacker in _kept),
        "opened": sum(attacker.opened for attacker in _kept),
        "ended": sum(attacker.ended for attacker in _kept),
        "closed": sum(attacker.closed for attacker in _kept),
    }


async def drop_halves(_channels: Channels) -> None:
    """Closes the connections of `send_halves`."""
    for attacker in _kept:
        attacker.close()
    _kept.clear()
