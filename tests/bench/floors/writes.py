"""F4: a turn's writes alone: two majority transactions of as many documents as the service's, of the same sizes."""

import asyncio
import time
from collections import deque

from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorClientSession, AsyncIOMotorDatabase

from tests.bench.runner import Channels

Database = AsyncIOMotorDatabase[dict[str, object]]

ACCEPTED = (330, 240, 310)
"""Bytes of the events when a message is accepted; then of those when it is answered."""
ANSWERED = (590, 320)
SESSION, TURN, REQUEST, ENDED = 600, 800, 450, 1150


async def prepare(_channels: Channels, *, uri: str, sessions: list[str]) -> None:
    """Writes the documents that exist before a turn."""
    client: AsyncIOMotorClient[dict[str, object]] = AsyncIOMotorClient(uri, w="majority", journal=True)
    database = client["floor"]
    for name in ("events", "turns", "requests"):
        if name not in await database.list_collection_names():
            await database.create_collection(name)
    await database.heads.insert_many(
        [{"_id": session_id, "last": 1, "owner": "", "until": 0} for session_id in sessions]
    )
    await database.sessions.insert_many([{"_id": session_id, "filling": b"x" * SESSION} for session_id in sessions])
    client.close()


async def write_turns(_channels: Channels, *, uri: str, sessions: list[str], concurrency: int) -> float:
    """Writes one turn in each session, `concurrency` at once. Returns the seconds."""
    client: AsyncIOMotorClient[dict[str, object]] = AsyncIOMotorClient(uri, w="majority", journal=True)
    waiting = deque(sessions)
    await client.admin.command("ping")

    async def work() -> None:
        async with await client.start_session() as session:
            while waiting:
                name = waiting.popleft()
                async with session.start_transaction():
                    await _accept(client["floor"], name, session)
                async with session.start_transaction():
                    await _answer(client["floor"], name, session)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    seconds = time.perf_counter() - began
    client.close()
    return seconds


async def _accept(database: Database, name: str, session: AsyncIOMotorClientSession) -> None:
    head = {"$set": {"last": 4, "owner": "floor", "until": 30}}
    await database.heads.update_one({"_id": name, "last": 1}, head, session=session)
    await database.events.insert_many(_events(name, 2, ACCEPTED), session=session)
    await database.sessions.update_one({"_id": name}, {"$set": {"filling": b"y" * SESSION}}, session=session)
    await database.turns.insert_one({"_id": name, "filling": b"x" * TURN}, session=session)
    await database.requests.insert_one({"_id": name, "filling": b"x" * REQUEST}, session=session)


async def _answer(database: Database, name: str, session: AsyncIOMotorClientSession) -> None:
    head = {"$set": {"last": 6, "owner": "", "until": 0}}
    await database.heads.update_one({"_id": name, "last": 4}, head, session=session)
    await database.events.insert_many(_events(name, 5, ANSWERED), session=session)
    await database.sessions.update_one({"_id": name}, {"$set": {"filling": b"z" * SESSION}}, session=session)
    await database.turns.update_one({"_id": name}, {"$set": {"filling": b"z" * ENDED}}, session=session)


def _events(name: str, first: int, sizes: tuple[int, ...]) -> list[dict[str, object]]:
    return [{"_id": f"{name}/{first + place}", "payload": b"x" * size} for place, size in enumerate(sizes)]
