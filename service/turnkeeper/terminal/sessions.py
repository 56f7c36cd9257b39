"""The commands `turnkeeper sessions` and `turnkeeper fork`."""

from typing import Annotated

import typer

from turnkeeper.terminal import pages
from turnkeeper.terminal.app import USE
from turnkeeper.terminal.command import Terminal, command
from turnkeeper.terminal.console import Part
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.terminal.failures import CommandFailed
from turnkeeper.terminal.lookup import find_session
from turnkeeper.terminal.names import ago, in_one_line, shortened, word
from turnkeeper_client.calls import call
from turnkeeper_client.pb.v1 import session_pb2
from turnkeeper_client.requests import new_request_id

SESSION = Annotated[str, typer.Argument(metavar="SESSION", help="id of a session, or its last 6 characters or more")]


@command(
    "sessions",
    panel=USE,
    examples=(
        "sessions --mine",
        "sessions --agent clerk --limit 10",
        "sessions --json | jq -r '.sessions[].sessionId'",
    ),
)
async def list_sessions(
    terminal: Terminal,
    *,
    mine: Annotated[bool, typer.Option("--mine", help="only those that you own")] = False,
    agent: Annotated[str, typer.Option(metavar="NAME", help="only those with this agent", show_default=False)] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="how many at most, the newest")] = 50,
) -> None:
    """List sessions, newest first."""
    async with terminal.client() as client:
        request = session_pb2.ListSessionsRequest(agent=agent, mine=mine)
        response = await pages.read(client.stubs.sessions.ListSessions, request, most=limit)
    if terminal.json:
        terminal.output.show_json(response)
        return
    if not response.sessions:
        terminal.output.show("No sessions yet. `turnkeeper chat` begins one.")
        return
    ids = shortened(session.session_id for session in response.sessions)
    rows: list[list[Part]] = [
        [
            (ids[session.session_id], "bold"),
            session.agent,
            session.owner,
            word(session_pb2.SessionState, session.state),
            ago(session.update_time),
            str(session.last_sequence),
            in_one_line(session.title),
        ]
        for session in response.sessions
    ]
    terminal.output.show_table(["SESSION", "AGENT", "OWNER", "STATE", "SINCE", "EVENTS", "TITLE"], rows)
    if response.next_page_token:
        terminal.output.show(f"The newest {len(rows)}; --limit shows more.")


@command("fork", panel=USE, examples=("fork k3f9q2", "fork k3f9q2 --at 12"))
async def fork(
    terminal: Terminal,
    session: SESSION,
    *,
    at: Annotated[
        str, typer.Option(metavar="PLACE", help="number of an event, or id of a checkpoint", show_default=False)
    ] = "",
) -> None:
    """Begin a new session with the conversation of another.

    Prints the new id. Without --at the whole conversation is copied.
    """
    async with terminal.client() as client:
        source = await find_session(client, session)
        request = session_pb2.ForkSessionRequest(session_id=source.session_id, request_id=new_request_id())
        if at.isdecimal():
            request.sequence = _number(at)
        elif at:
            request.checkpoint_id = at
        response = await call(client.stubs.sessions.ForkSession, request)
    if terminal.json:
        terminal.output.show_json(response)
    else:
        terminal.output.show(response.session.session_id)


def _number(text: str) -> int:
    if len(text) > 18:  # digits of an int64
        raise CommandFailed(f"--at is {text[:20]}…; the number of an event is smaller", ExitCode.USAGE)
    return int(text)
