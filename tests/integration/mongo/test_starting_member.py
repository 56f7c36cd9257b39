"""A database that takes connections before it is primary, as after a restart: what connects then works afterwards."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import bson

from tests.listening import listening
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.embedded import REPLICA_SET, address
from turnkeeper.store.mongo.change_stream import ChangeStream
from turnkeeper.store.mongo.unreadable import Unreadable

_HEADER = struct.Struct("<iiii")
_OLD_QUERY, _OLD_REPLY, _MESSAGE = 2004, 1, 2013


class Member:
    """The one member of a replica set, as the driver sees it; `is_primary` is False while it starts."""

    def __init__(self) -> None:
        self.is_primary = False
        self.greeted = asyncio.Event()
        self.port = 0

    def reply(self, command: dict[str, Any]) -> dict[str, Any]:
        if next(iter(command)).lower() in ("hello", "ismaster"):
            self.greeted.set()
            return self._greeting()
        if self.is_primary:
            return {"ok": 1, "cursor": {"id": 1, "firstBatch": [], "nextBatch": [], "postBatchResumeToken": {}}}
        return {"ok": 0, "code": 10107, "codeName": "NotWritablePrimary", "errmsg": "not primary"}

    def _greeting(self) -> dict[str, Any]:
        here = f"127.0.0.1:{self.port}"
        sessions = {"logicalSessionTimeoutMinutes": 30} if self.is_primary else {}
        return {
            "ok": 1,
            "helloOk": True,
            "isWritablePrimary": self.is_primary,
            "ismaster": self.is_primary,
            "secondary": False,
            "setName": REPLICA_SET,
            "hosts": [here],
            "me": here,
            **sessions,
            "minWireVersion": 0,
            "maxWireVersion": 17,
            "maxBsonObjectSize": 16 << 20,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size, number, _, kind = _HEADER.unpack(await reader.readexactly(16))
                body = await reader.readexactly(size - 16)
                start = 5 if kind == _MESSAGE else body.index(b"\0", 4) + 9
                answer = bson.encode(self.reply(dict(bson.decode(body[start:]))))
                before = struct.pack("<iB", 0, 0) if kind == _MESSAGE else struct.pack("<iqii", 8, 0, 0, 1)
                reply_kind = _MESSAGE if kind == _MESSAGE else _OLD_REPLY
                writer.write(_HEADER.pack(16 + len(before) + len(answer), 0, number, reply_kind) + before + answer)


@contextlib.asynccontextmanager
async def starting_member() -> AsyncIterator[Member]:
    member = Member()
    async with listening(member.serve) as member.port:
        yield member


async def test_what_connects_to_a_private_database_before_it_is_primary_works_afterwards() -> None:
    """A connection of the driver keeps the state that the server had at its handshake."""
    async with starting_member() as member:
        stream = ChangeStream(address(member.port), database="any", replica="one", unreadable=Unreadable())
        early = asyncio.create_task(_opened(stream))
        async with asyncio.timeout(10):
            await member.greeted.wait()
        await asyncio.wait([early], timeout=0.3)
        member.is_primary = True
        await asyncio.wait([early])
        assert await _opened(stream), "the driver goes on with a connection that it believes to have no sessions"
        await stream.close()


async def _opened(stream: ChangeStream) -> bool:
    try:
        async with stream.open():
            return True
    except ServiceUnavailable:
        return False
