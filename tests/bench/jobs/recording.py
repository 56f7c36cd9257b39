"""Records the bytes that a server streams, for the floor that sends the same bytes."""

import asyncio
import struct
from pathlib import Path
from typing import Any

from tests.bench.runner import Channels
from turnkeeper.pb.v1 import session_pb2

WATCH_EVENTS = "/turnkeeper.v1.SessionService/WatchEvents"
_LENGTH = struct.Struct(">I")


async def record(channels: Channels, *, address: str, session_id: str, file: str) -> dict[str, int]:
    """Records a replay of the whole log in a file. Returns the numbers of `responses`, `events` and `bytes`."""
    request = session_pb2.WatchEventsRequest(session_id=session_id, follow=False)
    call: Any = (await channels.to(address))[0].unary_stream(WATCH_EVENTS)
    responses: list[bytes] = [response async for response in call(request.SerializeToString())]
    await asyncio.to_thread(keep, responses, Path(file))
    events = sum(len(session_pb2.WatchEventsResponse.FromString(response).events) for response in responses)
    return {"responses": len(responses), "events": events, "bytes": sum(map(len, responses))}


def keep(responses: list[bytes], file: Path) -> None:
    """Writes the responses to the file, each after its length."""
    file.write_bytes(b"".join(_LENGTH.pack(len(response)) + response for response in responses))


def responses_of(file: Path) -> list[bytes]:
    """Reads the responses that `keep` wrote."""
    kept, place, responses = file.read_bytes(), 0, []
    while place < len(kept):
        (length,) = _LENGTH.unpack_from(kept, place)
        responses.append(kept[place + _LENGTH.size : place + _LENGTH.size + length])
        place += _LENGTH.size + length
    return responses
