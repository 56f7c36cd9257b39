"""The scene for what servers state about their own tools: it must loosen nothing."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests import harness
from tests.chaos.effects import EFFECTS
from tests.chaos.mutants.scenes import ENDS_IN
from tests.chaos.points.caller import Caller
from tests.chaos.points.stage import Stage
from tests.chaos.reading import lines
from tests.chaos.services.catalogue import stdio_table
from tests.chaos.services.offered import DESK
from tests.checker.compare import differences
from turnkeeper.pb.v1 import chat_pb2

SCRIPT: Final = r"""
[[reply]]
match = '^order'
after_tools = 0
tool_calls = [{ name = "desk__order", arguments = { label = "one" } }]

[[reply]]
text = "Told: {tool_result}"
"""
AGENTS: Final = """
[[agent]]
name = "clerk"
instructions = "Order."
tools = ["desk__*"]
policy = [{ tool = "*", action = "auto" }]
"""
NO_CLASS: Final = '\n[[tool]]\ntool = "desk__*"\n'


async def read_only_by_its_own_words(stage: Stage) -> Sequence[str]:
    """Has a call of an MCP server's tool that states that it only reads, and that the catalogue gives no class."""
    with tempfile.TemporaryDirectory(prefix="turnkeeper-mutant-annotations-") as name:
        folder = Path(name)
        agents, catalogue = folder / "agents.toml", folder / "catalogue.toml"
        agents.write_text(AGENTS)
        catalogue.write_text(stdio_table(DESK, folder) + NO_CLASS)
        flags = (*stage.flags, "--agents", str(agents), "--catalogue", str(catalogue))
        async with (
            harness.scripted(SCRIPT) as model,
            replace(stage, model=model, flags=flags).server() as server,
            harness.connect(server.address) as stubs,
        ):
            session = await harness.create_test_session(stubs, agent="clerk")
            sent = await harness.send_message_to_session(stubs, session, "order", wait=0)
            turn = await Caller(stubs).turn(session, sent.turn_id, wait=ENDS_IN)
        effects = len(lines(folder / EFFECTS))
    if turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL and not effects:
        return await differences(stage.mongo_uri, stage.database)
    state = chat_pb2.TurnState.Name(turn.state)
    return [f"no leave: the tool wrote {effects} lines, and the turn is {state}: {harness.answer_of(turn)}"]
