"""Scenes with a tool server over gRPC that keeps no results: only what it has promised holds a start back."""

import contextlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from tests import harness
from tests.chaos.mutants.scenes import ENDS_IN
from tests.chaos.points.caller import Caller
from tests.chaos.points.stage import Stage
from tests.checker.compare import differences
from tests.contracts.stores import until
from tests.e2e.support.server_processes import thaw
from tests.tool_servers.bank import catalogue
from tests.tool_servers.raw import RawServer, result
from tests.tool_servers.served import a_key_file, served
from turnkeeper import faults
from turnkeeper.pb.tools.v1 import tool_pb2

SCRIPT = r"""
[[reply]]
match = '^transfer'
after_tools = 0
tool_calls = [{ name = "ledger__transfer", arguments = {} }]

[[reply]]
text = "Told: {tool_result}"
"""
AGENTS = """
[[agent]]
name = "clerk"
instructions = "Transfer."
tools = ["ledger__*"]
policy = [{ tool = "*", action = "auto" }]
"""
DONE = '"moved"'


class Ledger(RawServer):
    """It knows which keys took effect, and which starts it must refuse. A second start is a second effect."""

    def __init__(self, *, breaks: bool = False) -> None:
        """`breaks`: its answers are lost on their way."""
        super().__init__(self._transfer)
        self._breaks = breaks
        self.effects = Counter[str]()
        self.starts: list[int] = []
        self._barred: dict[str, int] = {}

    async def _transfer(
        self, request: tool_pb2.CallToolRequest, context: Any
    ) -> AsyncIterator[tool_pb2.CallToolResponse]:
        self.starts.append(request.attempt)
        if request.attempt <= self._barred.get(request.idempotency_key, 0):
            await context.abort(grpc.StatusCode.ABORTED, "it did not run")
        self.effects[request.idempotency_key] += 1
        if self._breaks:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        yield result(DONE)

    async def Reconcile(self, request: tool_pb2.ReconcileRequest, context: Any) -> tool_pb2.ReconcileResponse:
        key = request.idempotency_key
        if self.effects[key]:
            return tool_pb2.ReconcileResponse(done=tool_pb2.Done(result_json=DONE))
        self._barred[key] = max(request.attempt, self._barred.get(key, 0))
        return tool_pb2.ReconcileResponse(not_started=tool_pb2.NotStarted())


@contextlib.asynccontextmanager
async def with_ledger(stage: Stage, ledger: Ledger) -> AsyncIterator[Stage]:
    """Serves the ledger, and yields the stage whose servers call it."""
    with tempfile.TemporaryDirectory(prefix="turnkeeper-ledger-") as name:
        folder = Path(name)
        (folder / "agents.toml").write_text(AGENTS)
        async with served(ledger) as address, harness.scripted(SCRIPT) as model:
            file = catalogue(folder, address, a_key_file(folder))
            flags = ("--agents", str(folder / "agents.toml"), "--catalogue", str(file), "--outcome-patience", "10s")
            yield replace(stage, model=model, flags=(*stage.flags, *flags))


async def stopped_before_the_call_left(stage: Stage) -> Sequence[str]:
    """Stops an owner between STARTED and the send until the call has ended under another owner."""
    ledger = Ledger()
    async with (
        with_ledger(stage, ledger) as with_tool,
        with_tool.server(**{faults.VARIABLE: "turn.tool.before_start=stop"}) as armed,
        harness.connect(armed.address) as to_armed,
    ):
        session = await harness.create_test_session(to_armed, agent="clerk")
        turn = await harness.send_message_to_session(to_armed, session, "transfer", wait=0)
        async with with_tool.server() as keeper, harness.connect(keeper.address) as stubs:
            await Caller(stubs).turn(session, turn.turn_id, wait=ENDS_IN)
            thaw(armed)

            async def has_arrived() -> bool:
                return len(ledger.starts) > 1

            await until(has_arrived)
    doubled = [f"double start: {key} took effect {times} times" for key, times in ledger.effects.items() if times > 1]
    return doubled + await differences(stage.mongo_uri, stage.database)


async def answer_lost(stage: Stage) -> Sequence[str]:
    """Lets a call take effect, and its answer be lost on its way."""
    ledger = Ledger(breaks=True)
    async with (
        with_ledger(stage, ledger) as with_tool,
        with_tool.server() as server,
        harness.connect(server.address) as stubs,
    ):
        session = await harness.create_test_session(stubs, agent="clerk")
        turn = await harness.send_message_to_session(stubs, session, "transfer", wait=0)
        ended = await Caller(stubs).turn(session, turn.turn_id, wait=ENDS_IN)
        answer = harness.answer_of(ended)
    wrong = [] if answer == "Told: moved" else [f"wrong text: it took effect, and the model read {answer!r}"]
    return wrong + await differences(stage.mongo_uri, stage.database)
