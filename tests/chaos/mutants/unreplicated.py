"""The scene for early acknowledgements: replication is paused, the primary acknowledges, and is killed."""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from tests import harness
from tests.chaos import cluster
from tests.chaos.faults.database import replication_paused
from tests.chaos.points.caller import Caller
from tests.chaos.points.stage import Stage
from turnkeeper.pb.v1 import chat_pb2

CALL = 2.0
"""Seconds that a call waits for a majority that is not there."""
SESSION = "unreplicated"


async def acknowledged(stage: Stage, *, times: int) -> Sequence[str]:
    """Sends the same message `times` times while only the primary stores it, and looks for acknowledged turns after."""
    with tempfile.TemporaryDirectory(prefix="turnkeeper-mutant-set-") as folder:
        agents = Path(folder) / "none.toml"
        plan = cluster.Plan(logs=Path(folder) / "logs", agents=agents, servers=0, clocks=False)
        async with cluster.running(plan) as running:
            here = replace(stage, mongo_uri=running.database.uri)
            async with here.server() as server, harness.connect(server.address) as stubs:
                await Caller(stubs).create("auto", SESSION)
                primary, term = await running.database.until_primary()
                others = [node for node in running.database.nodes if node is not primary]
                async with replication_paused(others):
                    turns = {await _send(stubs) for _ in range(times)} - {None}
                    await primary.kill()
                await running.database.until_primary(above=term)
            async with here.server() as server, harness.connect(server.address) as stubs:
                return [
                    f"lost: turn {turn} was acknowledged, and is gone"
                    for turn in turns
                    if turn and not await _there(stubs, turn)
                ]


async def once(stage: Stage) -> Sequence[str]:
    return await acknowledged(stage, times=1)


async def twice(stage: Stage) -> Sequence[str]:
    return await acknowledged(stage, times=2)


async def _send(stubs: harness.Stubs) -> str | None:
    """Sends the message. Returns its turn's id if it was acknowledged."""
    request = chat_pb2.SendMessageRequest(
        session_id=SESSION, request_id=SESSION, content=harness.text_parts("act it"), wait=Duration()
    )
    with contextlib.suppress(aio.AioRpcError):
        return str((await stubs.chat.SendMessage(request, timeout=CALL)).turn.turn_id)
    return None


async def _there(stubs: harness.Stubs, turn_id: str) -> bool:
    try:
        await Caller(stubs).turn(SESSION, turn_id)
    except aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False
        raise
    return True
