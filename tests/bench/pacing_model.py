"""`python -m tests.bench.pacing_model`: a model that keeps its time, for live streams and for load.

A request names a pace (`pacing.py`). Each chunk is sent at its intended time, whatever the chunks before it took. The
model speaks HTTP/1.1 on a bare protocol: a chunk costs a timer and a write, so that 128 streams leave room on its core.
GET /lateness returns by how much it was late itself since the last call: {"chunks": …, "p50": ms, "p99": ms}.
"""

import asyncio
import re
import time
from functools import lru_cache
from typing import ClassVar, Final, cast

import orjson
import uvloop

from tests.bench import pacing
from tests.bench.pacing import Pace
from tests.chaos.figures import quantile

READY: Final = "pacing model:"
_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_USAGE: Final = re.compile(rb'"include_usage": *true')


def _event(choices: list[object], **more: object) -> bytes:
    head = {"id": "chatcmpl-pacing", "object": "chat.completion.chunk", "created": 0, "model": "bench"}
    return b"data: " + orjson.dumps({**head, "choices": choices, **more}) + b"\n\n"


def _delta(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    return _event([{"index": 0, "delta": delta, "finish_reason": finish_reason}])


def _framed(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


@lru_cache(maxsize=4096)
def _later(number: int) -> bytes:
    return _framed(_delta({"content": pacing.later_chunk(number)}))


BEGIN: Final = _HEAD + _framed(_delta({"role": "assistant", "content": ""}))


class Connection(asyncio.Protocol):
    """One connection; its requests are answered one after the other."""

    late: ClassVar[list[float]] = []
    """By how many milliseconds each chunk was written late, on all connections."""

    def __init__(self) -> None:
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, ended, rest = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        if not ended or len(rest) < size:
            return
        body, self._received = rest[:size], rest[size:]
        if head.startswith(b"GET /lateness"):
            self._send_lateness()
        elif pace := pacing.pace_of(body):
            self._answer(pace, usage=_USAGE.search(body) is not None)
        else:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def _send_lateness(self) -> None:
        late, Connection.late = Connection.late, []
        shares = {f"p{share}": quantile(late, share / 100) for share in (50, 99)}
        body = orjson.dumps({"chunks": len(late), **shares})
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)

    def _answer(self, pace: Pace, *, usage: bool) -> None:
        self._transport.write(BEGIN)
        self._pace, self._usage, self._number = pace, usage, 0
        self._at = time.monotonic() + pace.first_ms / 1000
        self._wait()

    def _wait(self) -> None:
        intended = self._at + self._number * self._pace.apart_ms / 1000
        self._timer = asyncio.get_running_loop().call_later(max(0, intended - time.monotonic()), self._send, intended)

    def _send(self, intended: float) -> None:
        number = self._number
        chunk = _later(number) if number else _framed(_delta({"content": pacing.first_chunk(self._at)}))
        self._number += 1
        if self._number < self._pace.chunks:
            self._transport.write(chunk)
            self._wait()
        else:
            self._transport.write(chunk + self._end())
        Connection.late.append(1000 * (time.monotonic() - intended))

    def _end(self) -> bytes:
        """Returns the finish reason, the usage if the request names it, and the end of the body."""
        count = self._pace.chunks
        tokens = {"prompt_tokens": 16, "completion_tokens": count, "total_tokens": 16 + count}
        usage = _framed(_event([], usage=tokens)) if self._usage else b""
        return _framed(_delta({}, "stop")) + usage + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=2048)
    print(f"{READY} http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
