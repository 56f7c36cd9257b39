"""The scene for a reading that lags: a server asks a primary that was replaced and does not know it."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc
from grpc import aio

from tests import harness
from tests.chaos import cluster
from tests.chaos.points.caller import Caller
from tests.chaos.points.stage import Stage
from turnkeeper.pb.v1 import session_pb2

CALL = 8.0
"""Seconds that the call may take: less than the old primary's patience."""
SESSION = "acknowledged"


async def read_from_a_deposed_primary(stage: Stage) -> Sequence[str]:
    """Creates a session on the new primary, and asks for it a server that reads from the old one."""
    with tempfile.TemporaryDirectory(prefix="turnkeeper-mutant-set-") as folder:
        agents = Path(folder) / "none.toml"
        plan = cluster.Plan(logs=Path(folder) / "logs", agents=agents, servers=0, clocks=False)
        async with cluster.running(plan) as running:
            old, _ = await running.database.until_primary()
            behind = replace(stage, mongo_uri=old.direct_uri)
            here = replace(stage, mongo_uri=running.database.uri)
            async with (
                behind.server() as lagging,
                here.server() as server,
                harness.connect(lagging.address) as lagging_stubs,
                harness.connect(server.address) as stubs,
                running.database.deposed(old, running.wire),
            ):
                await Caller(stubs).create("auto", SESSION)
                hello = await old.hello()
                status = await _status(lagging_stubs)
                if hello is None or not hello.primary or status is grpc.StatusCode.OK:
                    return ["not struck: the old primary knew that it was replaced"]
    if status is grpc.StatusCode.UNAVAILABLE:
        return []
    return [f"lost: a session was acknowledged, and the answer about it is {status.name}"]


async def _status(stubs: harness.Stubs) -> grpc.StatusCode:
    try:
        await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=SESSION), timeout=CALL)
    except aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK
