"""The scenes of decisions: who makes them, which calls ask for one, and whether an inbox shows each of them."""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests import harness
from tests.chaos import approvals, load, tenants, tools
from tests.chaos.approvals import racers
from tests.chaos.approvals.judgement import judge
from tests.chaos.approvals.plan import Kind, races
from tests.chaos.points.caller import Caller
from tests.chaos.points.stage import Stage
from tests.chaos.reading import read
from turnkeeper.model.script_file import load_script
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import approval_pb2, chat_pb2

RACES: Final = 40
"""Of these, those that need two votes."""
SETTLE: Final = 5.0
ENDS_IN: Final = 10
"""Seconds until a turn has ended or waits, and until an inbox has what was requested."""
ASKED: Final = 10
"""Approvals that are requested while a watcher begins, one each EVERY seconds."""
EVERY: Final = 0.1
UNREADABLE: Final = """
[[agent]]
name = "careful"
tools = ["act"]
[[agent.policy]]
tool = "act"
when = "args.absent > 1"
action = "approve"
"""
_HERE: Final = Path(load.__file__).parent


async def raced(stage: Stage) -> Sequence[str]:
    """Races approvals on one server, without kills. Returns what the judgement of `make chaos-approvals` finds."""
    with tempfile.TemporaryDirectory(prefix="turnkeeper-mutant-races-") as name:
        folder = Path(name)
        tenants.write(folder)
        agents = Path(approvals.__file__).with_name("agents.toml")
        async with (
            ScriptedModel(load_script(_HERE / "model.toml")) as model,
            harness.server_process(
                stage.mongo_uri,
                stage.database,
                model,
                flags=("--agents", str(agents), "--lease", "30s", "--log-level", "ERROR", *tenants.flags(folder)),
                variables=tools.variables(folder),
                program=stage.program,
            ) as server,
        ):
            planned = [race for race in races(RACES, seed=1) if race.kind is not Kind.SINGLE]
            await racers.run(planned, addresses=[server.address], identity=folder, out=folder)
        findings = judge(await read(stage.mongo_uri, stage.database, folder, faults=None, settle=SETTLE))
    names = sorted(findings, key=lambda name: name != "votes")
    return [f"{name}: {line}" for name in names for line in findings[name].violations]


async def unreadable_condition(stage: Stage) -> Sequence[str]:
    """Has a call that a rule asks for whose condition cannot be read: it must ask, and not run."""
    file = stage.tool_control.folder / "careful.toml"
    file.write_text(UNREADABLE, encoding="utf-8")
    async with (
        harness.server_process(
            stage.mongo_uri,
            stage.database,
            stage.model,
            flags=("--agents", str(file), "--log-level", "ERROR"),
            variables=stage.tool_control.variables,
            program=stage.program,
        ) as server,
        harness.connect(server.address) as stubs,
    ):
        caller = Caller(stubs)
        await caller.create("careful", "unreadable")
        turn_id = await caller.send("unreadable", "act unreadable", request_id="unreadable")
        turn = await caller.turn("unreadable", turn_id, wait=ENDS_IN)
        ran = len(stage.tool_control.effects("unreadable"))
    if turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL and not ran:
        return []
    return [f"unread: the tool ran {ran} times, and the turn is {chat_pb2.TurnState.Name(turn.state)}"]


async def asked_while_a_watcher_begins(stage: Stage) -> Sequence[str]:
    """Lets approvals be requested while a watcher begins. It must be sent each of them."""
    async with stage.server() as server, harness.connect(server.address) as stubs:
        caller = Caller(stubs)
        listed: set[str] = set()

        async def watch() -> None:
            async for response in stubs.approvals.WatchApprovals(approval_pb2.WatchApprovalsRequest()):
                listed.update(approval.session_id for approval in response.approvals)
                if len(listed) == ASKED:
                    return

        sessions = [f"watched-{number}" for number in range(ASKED)]
        for session in sessions:
            await caller.create("asks", session)
        watching = asyncio.create_task(watch())
        for session in sessions:
            await caller.send(session, f"act {session}", request_id=session)
            await asyncio.sleep(EVERY)
        await asyncio.wait([watching], timeout=ENDS_IN)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return [f"inbox: the approval of {session} was not sent" for session in sessions if session not in listed]
