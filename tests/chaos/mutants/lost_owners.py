"""The scenes of lost owners: a lease that lapses is not a loss, and an owner that was stopped brings its result."""

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace

from pymongo import AsyncMongoClient

from tests import harness
from tests.chaos.mutants.scenes import ENDS_IN
from tests.chaos.points.caller import Caller
from tests.chaos.points.stage import Stage
from tests.checker.compare import differences
from tests.contracts.stores import until
from turnkeeper.pb.v1 import chat_pb2

LEASE = 4.0
FROZEN = 2 * LEASE
"""Seconds of the database: each lease lapses meanwhile."""
SLOW = 1.0
"""Seconds for which the owner stands still after that: it renews later than another replica sweeps."""
PATIENCE = "20s"
LABEL = "late"


async def owner_behind_a_frozen_database(stage: Stage) -> Sequence[str]:
    """Stops the database for two leases. Its owner goes on a second after it: the turn is its own still."""
    patient = replace(stage, flags=(*stage.flags, "--lease", f"{LEASE:g}s"))
    async with (
        AsyncMongoClient[dict[str, object]](stage.mongo_uri) as client,
        patient.server() as server,
        patient.server(),
        harness.connect(server.address) as stubs,
    ):
        caller, heads = Caller(stubs), client[stage.database]["heads"]
        database = int((await client.admin.command("serverStatus"))["pid"])
        await caller.create("auto", "kept")
        await caller.send("kept", "wait long", request_id="kept")
        await asyncio.sleep(LEASE)  # until the other one would take over what is lost
        os.kill(database, signal.SIGSTOP)
        await asyncio.sleep(FROZEN)
        os.kill(server.pid, signal.SIGSTOP)
        os.kill(database, signal.SIGCONT)
        await asyncio.sleep(SLOW)
        os.kill(server.pid, signal.SIGCONT)
        await asyncio.sleep(LEASE)
        head = await heads.find_one({"session_id": "kept"}, {"fence": 1, "lapses": 1})
    if head is not None and (head["fence"], head["lapses"]) == (1, 0):
        return await differences(stage.mongo_uri, stage.database)
    return [f"lost: the turn of an owner that is alive was taken from it: {head}"]


async def owner_stopped_in_mid_call(stage: Stage) -> Sequence[str]:
    """Stops an owner beyond its lease while an irreversible tool runs. It goes on in time: it needs no person."""
    variables = {**stage.variables, "TURNKEEPER_OUTCOME_PATIENCE": PATIENCE}
    patient = replace(stage, variables=variables)
    async with (
        patient.server() as server,
        harness.connect(server.address) as stubs,
        patient.server() as keeper,
        harness.connect(keeper.address) as keeper_stubs,
    ):
        caller = Caller(keeper_stubs)
        await caller.create("holds", LABEL)
        turn_id = await Caller(stubs).send(LABEL, f"late {LABEL}", request_id=LABEL)
        await stage.tool_control.started(LABEL)
        os.kill(server.pid, signal.SIGSTOP)

        async def is_taken_over() -> bool:
            return "attempt_superseded" in harness.kinds(await harness.all_events(keeper_stubs, LABEL))

        await until(is_taken_over, within=30)
        os.kill(server.pid, signal.SIGCONT)
        stage.tool_control.release(LABEL)
        turn = await caller.turn(LABEL, turn_id, wait=ENDS_IN)
        starts = len(stage.tool_control.effects(LABEL))
    if (turn.state, starts) == (chat_pb2.TURN_STATE_COMPLETED, 1):
        return await differences(stage.mongo_uri, stage.database)
    state = chat_pb2.TurnState.Name(turn.state)
    return [f"late: the tool was started {starts} times, and the turn is {state}"]
