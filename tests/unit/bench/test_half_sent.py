"""The attacker's frames are HTTP/2's, and it sends what the windows allow and no more."""

import asyncio
import struct
from collections.abc import Iterator

import pytest

from tests.bench.jobs.half_sent import MESSAGE, Budget, HalfSent, frame, headers

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
SERVER_SETTINGS = frame(SETTINGS, 0, 0, struct.pack("!HIHI", 3, 2, 4, 40_000))


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yields kind, flags, stream and payload of each frame since the last look."""
        rest, self.written = self.written.removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), b""
        while rest:
            length = int.from_bytes(rest[:3])
            kind, flags, stream = struct.unpack("!BBI", rest[3:9])
            yield kind, flags, stream, rest[9 : 9 + length]
            rest = rest[9 + length :]

    def data(self) -> dict[int, int]:
        """Returns the bytes of data that were written on each stream since the last look."""
        sizes: dict[int, int] = {}
        for kind, _, stream, payload in self.frames():
            if kind == DATA:
                sizes[stream] = sizes.get(stream, 0) + len(payload)
        return sizes


@pytest.fixture
def wire() -> Wire:
    return Wire()


def _attacker(wire: Wire, *, most: int = 1 << 30, streams: int = 5) -> HalfSent:
    budget = Budget(most)
    budget.grant(1 << 30)
    attacker = HalfSent(streams, budget)
    attacker.connection_made(wire)
    return attacker


def test_headers_are_literals() -> None:
    assert headers(b"/x").startswith(b"\0\x07:method\x04POST\0\x07:scheme\x04http\0\x05:path\x02/x")
    token = "t" * 293
    assert headers(b"/x", token).endswith(b"\0\x0dauthorization\x7f\xad\x01Bearer " + token.encode())


def test_streams_are_opened_as_the_server_s_settings_allow(wire: Wire) -> None:
    attacker = _attacker(wire)
    assert [kind for kind, *_ in wire.frames()] == [SETTINGS]
    attacker.data_received(SERVER_SETTINGS)
    frames = list(wire.frames())
    assert [stream for kind, _, stream, _ in frames if kind == HEADERS] == [1, 3]
    first = next(payload for kind, _, _, payload in frames if kind == DATA)
    assert first[:5] == struct.pack("!BI", 0, MESSAGE)


def test_no_more_is_sent_than_both_windows_allow(wire: Wire) -> None:
    attacker = _attacker(wire)
    attacker.data_received(SERVER_SETTINGS)
    assert sum(wire.data().values()) == 65_535
    attacker.data_received(frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 1 << 20)))
    assert sum(wire.data().values()) == 80_000 - 65_535
    attacker.data_received(frame(WINDOW_UPDATE, 0, 3, struct.pack("!I", 100)))
    assert wire.data() == {3: 100}


def test_the_last_byte_never_comes(wire: Wire) -> None:
    attacker = _attacker(wire, streams=1)
    attacker.data_received(SERVER_SETTINGS)
    for stream in (0, 1):
        attacker.data_received(frame(WINDOW_UPDATE, 0, stream, struct.pack("!I", 1 << 30)))
    assert wire.data() == {1: 5 + MESSAGE - 1}
    assert attacker.sent == 5 + MESSAGE - 1


def test_the_budget_holds_for_all_connections(wire: Wire) -> None:
    attacker = _attacker(wire, most=50_000)
    attacker.data_received(SERVER_SETTINGS)
    assert sum(wire.data().values()) == attacker.sent == 50_000


def test_no_more_is_sent_than_was_granted(wire: Wire) -> None:
    budget = Budget(50_000)
    attacker = HalfSent(5, budget)
    attacker.connection_made(wire)
    attacker.data_received(SERVER_SETTINGS)
    assert wire.data() == {}
    for granted, total in ((30_000, 30_000), (30_000, 50_000)):
        budget.grant(granted)
        attacker.send()
        assert attacker.sent == total


def test_what_the_server_ends_is_counted_and_gets_no_more(wire: Wire) -> None:
    attacker = _attacker(wire)
    attacker.data_received(SERVER_SETTINGS)
    attacker.data_received(frame(RST_STREAM, 0, 1, b"\0\0\0\x08") + frame(HEADERS, 0x5, 3, b""))
    assert (attacker.opened, attacker.ended) == (2, 2)
    wire.written = b""
    attacker.data_received(frame(WINDOW_UPDATE, 0, 1, struct.pack("!I", 100)))
    assert wire.data() == {}


def test_a_ping_is_answered_also_when_its_bytes_come_one_by_one(wire: Wire) -> None:
    attacker = _attacker(wire)
    wire.written = b""
    for byte in frame(PING, 0, 0, b"12345678"):
        attacker.data_received(bytes([byte]))
    assert list(wire.frames()) == [(PING, 1, 0, b"12345678")]
