"""The command `turnkeeper turns`."""

from typing import Annotated

import typer

from turnkeeper.terminal import pages
from turnkeeper.terminal.app import LOOK
from turnkeeper.terminal.command import Terminal, command
from turnkeeper.terminal.console import Part
from turnkeeper.terminal.names import shortened, span, word
from turnkeeper_client.pb.v1 import chat_pb2, operator_pb2


@command("turns", panel=LOOK, examples=("turns", "turns --agent clerk --tool send_message"))
async def list_turns(
    terminal: Terminal,
    *,
    agent: Annotated[str, typer.Option(metavar="NAME", help="only those of this agent", show_default=False)] = "",
    tool: Annotated[
        str, typer.Option(metavar="NAME", help="only those with an open call of this tool", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="how many at most")] = 100,
) -> None:
    """List the turns that run, wait or are queued.

    Those of all sessions. Needs the role operator.
    """
    async with terminal.client() as client:
        chosen = operator_pb2.TurnFilter(agent=agent, tool=tool)
        request = operator_pb2.ListActiveTurnsRequest(filter=chosen if chosen.ByteSize() else None)
        response = await pages.read(client.stubs.operator.ListActiveTurns, request, most=limit)
    if terminal.json:
        terminal.output.show_json(response)
        return
    if not response.turns:
        terminal.output.show("No turn runs, waits or is queued.")
        return
    ids = shortened(turn.session_id for turn in response.turns)
    rows: list[list[Part]] = [
        [
            (ids[turn.session_id], "bold"),
            turn.agent,
            turn.principal,
            word(chat_pb2.TurnState, turn.state) + (" (cancelling)" if turn.cancelling else ""),
            span(turn.age.ToTimedelta()),
            turn.replica,
            ", ".join(turn.tools),
        ]
        for turn in response.turns
    ]
    terminal.output.show_table(["SESSION", "AGENT", "CALLER", "STATE", "AGE", "REPLICA", "TOOLS"], rows)
